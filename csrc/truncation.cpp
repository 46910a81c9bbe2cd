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
// Sums of many weights round by less than this share.
constexpr double kRounding = 1e-5;
// A nucleus is looked for first above the bar below which that many tokens could weigh all that it
// leaves out.
constexpr double kTail = 1000;
// How often the range of weights in which a nucleus may end, at first of some 15 powers of two, is
// halved; after each round only the weights within it are left.
constexpr int kRounds = 3;
constexpr int kHalvings = 3;

// Halfway between two weights as the bits of floats count, which is nearly as their exponents do.
float middle_of(float low, float high) {
  std::int32_t bits[2];
  std::memcpy(&bits[0], &low, sizeof(low));
  std::memcpy(&bits[1], &high, sizeof(high));
  bits[0] += (bits[1] - bits[0]) / 2;
  std::memcpy(&low, &bits[0], sizeof(low));
  return low;
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
    total = kernels::exp2_sum(row.logits, row.size, greatest, scale);
    if (!std::isfinite(total)) return false;
    find_by_mass(row, limits, total);
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
  if (limits.min_p > 0) cut(ratio_bar(limits.min_p));
  if (row.ids != nullptr) {
    for (std::int32_t i = 0; i < count_; ++i) indices_[i] = row.ids[indices_[i]];
  }
  out.hold(indices_.data(), kept_.data(), count_);
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

// Finds all tokens of at least this exponent; returns what they weigh.
double Truncation::find_by_logit(const LogitRow& row, double exponent) {
  const float bar = logit(exponent);
  const double least = std::exp2((bar - greatest_) * scale_ - kSlack);
  least_ = std::isfinite(bar) ? static_cast<float>(least) : 0;
  std::int32_t* indices = room(indices_, row.size + kernels::kAtLeastSpare);
  count_ = kernels::at_least(row.logits, row.size, bar, maxima_.data(), indices);
  float* kept = room(kept_, count_);
  for (std::int32_t i = 0; i < count_; ++i) kept[i] = row.logits[indices[i]];
  return kernels::exp2_shifted(kept, count_, static_cast<float>(greatest_),
                               static_cast<float>(scale_), kept);
}

// Finds at least the nucleus of all tokens, which weigh `total`, but for what min_p drops.
void Truncation::find_by_mass(const LogitRow& row, const Limits& limits, double total) {
  const double nucleus = limits.top_p * total * (1 + kRounding);
  const double left_out = (1 - limits.top_p) * total;
  // All tokens below this together weigh less than what is left out.
  const double least = std::max(0.99 * left_out / row.size, limits.min_p);
  double bar = nucleus < 1 ? 1 : left_out / kTail;  // 1: the greatest alone is enough
  while (bar > least) {
    const double found = find_by_logit(row, std::log2(bar));
    if (found >= nucleus) return;
    // Were there as many tokens in every power of two, what lies below a bar would weigh as much as
    // the bar is high.
    bar *= 0.5 * std::min(left_out / (total - found), 1.0);
  }
  find_by_logit(row, std::log2(least));
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
  // Those from `high` on weigh less, those from `low` on do not.
  float low = least_;
  float high = 2;
  double heavier = 0;
  const float* weights = kept_.data();  // those that are still in question
  std::int32_t size = count_;
  float* order = room(order_, count_);
  for (int round = 0; round < kRounds; ++round) {
    const double settled = heavier;
    for (int i = 0; i < kHalvings; ++i) {
      const float middle = middle_of(low, high);
      const double sum = settled + kernels::sum_at_least(weights, size, middle);
      if (sum >= mass) {
        low = middle;
      } else {
        high = middle;
        heavier = sum;
      }
    }
    size = kernels::in_range(weights, size, low, high, order);
    weights = order;
  }
  std::sort(order, order + size, std::greater<>());
  Bar bar{0, 0};
  for (std::int32_t i = 0; i < size && heavier < mass; ++i) {
    bar.equals = order[i] == bar.weight ? bar.equals + 1 : 1;
    bar.weight = order[i];
    heavier += order[i];
  }
  return bar;
}

// What min_p leaves of the greatest weight, 1.
Truncation::Bar Truncation::ratio_bar(double min_p) const {
  auto bar = static_cast<float>(min_p);
  if (bar < min_p) bar = std::nextafter(bar, 1.0f);
  return {std::min(bar, 1.0f), count_};
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
