#include "truncation.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>

#include "kernels.h"

namespace specdec {
namespace {

constexpr double kLeast = -127;  // exponents from here on have no weight
// What the exponent of one token must exceed another's by to be the heavier one for certain:
// more than the rounding of exponents down to kLeast and of weights made from them.
constexpr double kSlack = 1e-3;
constexpr int kLowestGuess = -16;
constexpr int kBinBits = 18;     // of a float's 23: 32 bins for each power of two

// Which bin of lighter and lighter weights.
std::size_t bin_of(float weight) {
  std::int32_t bits;
  std::memcpy(&bits, &weight, sizeof(bits));
  return static_cast<std::size_t>(std::max(0x3F800000 - bits, 0) >> kBinBits);
}

template <class T>
T* room(std::vector<T>& values, std::int32_t size) {
  if (values.size() < static_cast<std::size_t>(size)) values.resize(static_cast<std::size_t>(size));
  return values.data();
}

}  // namespace

bool Truncation::keep(const LogitRow& row, float scale, const Limits& limits, Distribution& out) {
  const float greatest =
      kernels::maxima(row.logits, row.size, room(maxima_, kernels::maxima_size(row.size)));
  if (!std::isfinite(greatest)) return false;
  greatest_ = greatest;
  scale_ = scale;
  const bool by_rank = limits.top_k > 0 && limits.top_k < row.size;
  const bool by_mass = limits.top_p < 1;
  double total = 0;
  if (by_mass && !by_rank) {
    total = find_by_mass(row, limits);
    if (!std::isfinite(total)) return false;
  } else {
    const double ratio = limits.min_p > 0 ? std::log2(limits.min_p) : kLeast;
    const double rank = by_rank ? rank_exponent(row, limits.top_k) : kLeast;
    // What a nucleus is a share of counts before min_p does.
    find_by_logit(row, by_mass ? rank : std::max(rank, ratio));
  }
  if (by_rank && limits.top_k < count_) cut(rank_bar(limits.top_k));
  if (by_mass) {
    if (by_rank) total = std::accumulate(kept_.begin(), kept_.begin() + count_, 0.0);
    cut(mass_bar(limits.top_p * total));
  }
  const auto least = [&](float weight) { return weight >= limits.min_p || weight >= 1; };
  std::int32_t kept = 0;
  std::int32_t* ids = room(ids_, count_);
  for (std::int32_t i = 0; i < count_; ++i) {
    ids[kept] = row.ids == nullptr ? indices_[i] : row.ids[indices_[i]];
    kept_[kept] = kept_[i];
    kept += least(kept_[i]) ? 1 : 0;
  }
  out.hold(ids, kept_.data(), kept);
  return true;
}

float Truncation::logit(double exponent) const {
  return static_cast<float>(greatest_ + (exponent - kSlack) / scale_);
}

// At least top_k tokens have at least this exponent, or those that have not weigh nothing.
double Truncation::rank_exponent(const LogitRow& row, std::int32_t top_k) {
  // Each maximum is a token of its own: as many maxima above a bar are as many tokens.
  const float* values = maxima_.data();
  std::int32_t size = kernels::maxima_size(row.size);
  const std::int32_t coarse = kernels::maxima_size(size);
  if (top_k <= coarse / 2) {
    kernels::maxima(values, size, room(coarse_, coarse));
    values = coarse_.data();
    size = coarse;
  }
  if (top_k > size) return kLeast;
  const auto above = [&](double exponent) {
    const auto bar = static_cast<float>(greatest_ + exponent / scale_);
    return kernels::count_at_least(values, size, bar);
  };
  double low = -1;
  while (low > kLeast && above(low) < top_k) low *= 2;
  if (low <= kLeast) return kLeast;
  // Some more than top_k are good enough: they are cut one by one.
  double high = low < -1 ? low / 2 : 0;
  for (int i = 0; i < 8; ++i) {
    const double middle = (low + high) / 2;
    const std::int32_t count = above(middle);
    (count >= top_k ? low : high) = middle;
    if (count >= top_k && count <= top_k + top_k / 8) break;
  }
  return low;
}

void Truncation::find_by_logit(const LogitRow& row, double exponent) {
  const float bar = logit(exponent);
  std::int32_t* indices = room(indices_, row.size);
  count_ = kernels::at_least(row.logits, row.size, bar, {maxima_.data(), bar}, indices);
  float* kept = room(kept_, count_);
  for (std::int32_t i = 0; i < count_; ++i) kept[i] = row.logits[indices[i]];
  kernels::exp2_shifted(kept, count_, static_cast<float>(greatest_), static_cast<float>(scale_),
                        kept);
}

// Finds at least the nucleus of all tokens; returns what these weigh.
double Truncation::find_by_mass(const LogitRow& row, const Limits& limits) {
  float* weights = room(weights_, row.size);
  const double total = kernels::exp2_shifted(row.logits, row.size, static_cast<float>(greatest_),
                                             static_cast<float>(scale_), weights);
  // All tokens below this together weigh less than what the nucleus leaves out.
  double bar = std::max(0.99 * (1 - limits.top_p) * total / row.size, limits.min_p);
  // Mostly a far higher bar has the nucleus above it; a little more than its mass, for rounding.
  const double nucleus = std::min(limits.top_p + 1e-5, 1.0) * total;
  kernels::Blocks blocks{maxima_.data(), logit(std::log2(bar))};
  for (int exponent = guess_; std::ldexp(1.0, exponent) > bar; --exponent) {
    const kernels::Blocks higher{maxima_.data(), logit(exponent)};
    const auto threshold = static_cast<float>(std::ldexp(1.0, exponent));
    if (kernels::sum_at_least(weights, row.size, threshold, higher) <= nucleus) continue;
    bar = threshold;
    blocks = higher;
    break;
  }
  // Where it begins changes nothing but the time: too low a bar lets more tokens pass to the exact
  // cut, of which there are few where a row is sure of its token.
  guess_ = std::min(std::max(std::ilogb(bar), kLowestGuess) + 1, -1);
  std::int32_t* indices = room(indices_, row.size);
  count_ = kernels::at_least(weights, row.size, static_cast<float>(bar), blocks, indices);
  float* kept = room(kept_, count_);
  for (std::int32_t i = 0; i < count_; ++i) kept[i] = weights[indices[i]];
  return total;
}

Truncation::Bar Truncation::rank_bar(std::int32_t top_k) {
  order_.assign(kept_.begin(), kept_.begin() + count_);
  const auto last = order_.begin() + (top_k - 1);
  std::nth_element(order_.begin(), last, order_.end(), std::greater<>());
  const float bar = *last;
  const auto heavier = std::count_if(order_.begin(), last, [=](float w) { return w > bar; });
  return {bar, top_k - static_cast<std::int32_t>(heavier)};
}

// The lightest of the heaviest that weigh at least `mass` together, all of them where none do.
Truncation::Bar Truncation::mass_bar(double mass) {
  const float least = *std::min_element(kept_.begin(), kept_.begin() + count_);
  const std::size_t bins = bin_of(least) + 1;
  mass_.assign(bins, 0.0);
  for (std::int32_t i = 0; i < count_; ++i) mass_[bin_of(kept_[i])] += kept_[i];
  double heavier = 0;
  std::size_t bin = 0;
  while (bin + 1 < bins && heavier + mass_[bin] < mass) heavier += mass_[bin++];
  order_.clear();
  for (std::int32_t i = 0; i < count_; ++i) {
    if (bin_of(kept_[i]) == bin) order_.push_back(kept_[i]);
  }
  std::sort(order_.begin(), order_.end(), std::greater<>());
  std::int32_t equals = 0;
  float bar = 0;
  for (const float weight : order_) {
    equals = weight == bar ? equals + 1 : 1;
    bar = weight;
    heavier += weight;
    if (heavier >= mass) return {bar, equals};
  }
  return {least, count_};
}

void Truncation::cut(Bar bar) {
  std::int32_t kept = 0;
  for (std::int32_t i = 0; i < count_; ++i) {
    const float weight = kept_[i];
    indices_[kept] = indices_[i];
    kept_[kept] = weight;
    if (weight == bar.weight) {
      kept += bar.equals-- > 0 ? 1 : 0;
    } else {
      kept += weight > bar.weight ? 1 : 0;
    }
  }
  count_ = kept;
}

}  // namespace specdec
