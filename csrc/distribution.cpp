#include "distribution.h"

#include <algorithm>
#include <utility>

#include "kernels.h"

namespace specdec {
namespace {

constexpr std::int32_t kBlock = 1024;

// Index at quantile u of weights[n] that add up to total. Never one without weight.
std::int32_t index_at(const float* weights, std::int32_t n, double total, double u) {
  double left = u * total;
  std::int32_t last_with_weight = 0;
  for (std::int32_t begin = 0; begin < n; begin += kBlock) {
    const std::int32_t count = std::min(kBlock, n - begin);
    const double block = kernels::sum(weights + begin, count);
    // A block that should hold the quantile may miss it by a rounding error: then the scan runs
    // to its end and the search goes on with the next block.
    if (left >= block && begin + count < n) {
      left -= block;
      continue;
    }
    for (std::int32_t i = begin; i < begin + count; ++i) {
      if (weights[i] <= 0.0f) continue;
      last_with_weight = i;
      left -= weights[i];
      if (left < 0) return i;
    }
  }
  if (weights[last_with_weight] > 0.0f) return last_with_weight;
  for (std::int32_t i = n; i-- > 0;) {
    if (weights[i] > 0.0f) return i;
  }
  return 0;
}

// Sum of min(a * dense[ids[i]], b * weights[i]) over the n ids that dense has.
double listed_overlap(const float* dense, float a, const std::int32_t* ids, const float* weights,
                      float b, std::int32_t n) {
  float gathered[kBlock];
  double common = 0;
  for (std::int32_t begin = 0; begin < n; begin += kBlock) {
    const std::int32_t count = std::min(kBlock, n - begin);
    for (std::int32_t i = 0; i < count; ++i) gathered[i] = dense[ids[begin + i]];
    common += kernels::overlap(gathered, a, weights + begin, b, count);
  }
  return common;
}

// dense[ids[i]] = max(dense[ids[i]] - b * weights[i], 0).
void subtract_listed(float* dense, const std::int32_t* ids, const float* weights, float b,
                     std::int32_t n) {
  float gathered[kBlock];
  for (std::int32_t begin = 0; begin < n; begin += kBlock) {
    const std::int32_t count = std::min(kBlock, n - begin);
    for (std::int32_t i = 0; i < count; ++i) gathered[i] = dense[ids[begin + i]];
    kernels::excess(gathered, 1.0f, weights + begin, b, count, gathered);
    for (std::int32_t i = 0; i < count; ++i) dense[ids[begin + i]] = gathered[i];
  }
}

// How many of the distribution's ids, which are listed, are below `size`.
std::int32_t count_below(const Distribution& listed, std::int32_t size) {
  const std::int32_t* end = listed.ids() + listed.size();
  return static_cast<std::int32_t>(std::lower_bound(listed.ids(), end, size) - listed.ids());
}

// Calls visit(p_index, q_index) for every id in both supports, of which p's is listed.
template <class Visit>
void for_each_shared(const Distribution& p, const Distribution& q, Visit visit) {
  if (q.ids() == nullptr) {
    for (std::int32_t i = 0; i < p.size(); ++i) {
      if (p.ids()[i] < q.size()) visit(i, p.ids()[i]);
    }
    return;
  }
  std::int32_t i = 0;
  std::int32_t j = 0;
  while (i < p.size() && j < q.size()) {
    if (p.ids()[i] == q.ids()[j]) visit(i, j);
    const bool step_p = p.ids()[i] <= q.ids()[j];
    const bool step_q = q.ids()[j] <= p.ids()[i];
    i += step_p ? 1 : 0;
    j += step_q ? 1 : 0;
  }
}

}  // namespace

void Distribution::hold(const std::int32_t* ids, const float* weights, std::int32_t n) {
  held_ids_.assign(ids, ids + n);
  std::copy_n(weights, n, storage(n));
  refer(held_weights_.data(), n, held_ids_.data(), kernels::sum(weights, n));
}

void Distribution::hold_one(std::int32_t id) {
  held_ids_.assign(1, id);
  float* weights = storage(1);
  weights[0] = 1.0f;
  refer(weights, 1, held_ids_.data(), 1.0);
}

std::int32_t Distribution::index_of(std::int32_t token) const {
  if (ids_ == nullptr) return token >= 0 && token < size_ ? token : -1;
  const std::int32_t* end = ids_ + size_;
  const std::int32_t* found = std::lower_bound(ids_, end, token);
  return found != end && *found == token ? static_cast<std::int32_t>(found - ids_) : -1;
}

float Distribution::weight(std::int32_t token) const {
  const std::int32_t index = index_of(token);
  return index < 0 ? 0.0f : weights_[index];
}

double Distribution::probability(std::int32_t token) const { return weight(token) / total_; }

double Distribution::total_without(const std::int32_t* tokens, std::int32_t n) const {
  // Never by subtraction: next to a token that has nearly all the weight, the others would drown in
  // its rounding error.
  std::int32_t cuts[kMaxCandidates];
  std::int32_t count = 0;
  for (std::int32_t i = 0; i < std::min(n, kMaxCandidates); ++i) {
    const std::int32_t index = index_of(tokens[i]);
    if (index < 0) continue;
    std::int32_t place = count++;
    for (; place > 0 && cuts[place - 1] > index; --place) cuts[place] = cuts[place - 1];
    cuts[place] = index;
  }
  double total = 0;
  std::int32_t begin = 0;
  for (std::int32_t i = 0; i < count; ++i) {
    total += kernels::sum(weights_ + begin, cuts[i] - begin);
    begin = cuts[i] + 1;
  }
  return total + kernels::sum(weights_ + begin, size_ - begin);
}

std::int32_t Distribution::greatest(std::int32_t n, float* probabilities) const {
  kernels::Ranked best[kMaxCandidates] = {};
  n = std::min(n, kMaxCandidates);
  kernels::top(weights_, size_, 0, best, n);
  std::int32_t count = 0;
  for (; count < n && best[count].value > 0; ++count) {
    probabilities[count] = static_cast<float>(best[count].value / total_);
  }
  return count;
}

std::int32_t Distribution::argmax() const { return id_at(kernels::argmax(weights_, size_)); }

std::int32_t Distribution::sample(double u) const {
  return id_at(index_at(weights_, size_, total_, u));
}

std::int32_t Distribution::race(const RoundNoise& noise, std::uint32_t offset, RaceNoise& race,
                                std::int32_t n, std::int32_t* winners) const {
  kernels::Ranked best[kMaxCandidates] = {};
  n = std::min(n, kMaxCandidates);
  // Of listed ids, the whole row of words is only worth making for many.
  constexpr std::int32_t kFew = 1024;
  const auto run = [&](std::int32_t begin, std::int32_t count, const std::uint32_t* words) {
    if (scale_ == 0) {
      kernels::race(weights_ + begin, words, count, begin, best, n);
    } else {
      kernels::race_exp2(weights_ + begin, greatest_, scale_, words, count, begin, best, n);
    }
  };
  if (ids_ == nullptr) {
    run(0, size_, race.row(noise, offset, size_));
  } else {
    const std::uint32_t* row =
        size_ > kFew ? race.row(noise, offset, ids_[size_ - 1] + 1) : nullptr;
    std::uint32_t words[kBlock];
    for (std::int32_t begin = 0; begin < size_; begin += kBlock) {
      const std::int32_t count = std::min(kBlock, size_ - begin);
      const std::int32_t* ids = ids_ + begin;
      if (row == nullptr) {
        RaceNoise::pick(noise, offset, ids, count, words);
      } else {
        for (std::int32_t i = 0; i < count; ++i) words[i] = row[ids[i]];
      }
      run(begin, count, words);
    }
  }
  winners[0] = id_at(best[0].index);
  std::int32_t count = 1;
  for (; count < n && best[count].value > 0; ++count) winners[count] = id_at(best[count].index);
  return count;
}

std::int32_t Distribution::sample_others(const double* us, std::int32_t n, std::int32_t* tokens) {
  float* weights = held_weights_.data();
  float taken[kMaxCandidates];
  std::int32_t at[kMaxCandidates];
  n = std::min(n, kMaxCandidates);
  std::int32_t count = 1;
  for (; count < n; ++count) {
    const std::int32_t last = count - 1;
    at[last] = index_of(tokens[last]);
    taken[last] = std::exchange(weights[at[last]], 0.0f);
    const double total = kernels::sum(weights, size_);
    if (!(total > 0)) break;
    tokens[count] = id_at(index_at(weights, size_, total, us[count]));
  }
  for (std::int32_t i = 0; i < std::min(count, n - 1); ++i) weights[at[i]] = taken[i];
  return count;
}

double excess_mass(double mass, const Distribution& p, const Distribution& q) {
  // max(a - b, 0) = a - min(a, b): what the two have in common lies on q's support.
  const double p_scale = mass / p.total();
  const double q_scale = 1.0 / q.total();
  const auto a = static_cast<float>(p_scale);
  const auto b = static_cast<float>(q_scale);
  double common = 0;
  if (p.ids() == nullptr && q.ids() == nullptr) {
    const std::int32_t size = std::min(p.size(), q.size());
    common = kernels::overlap(p.weights(), a, q.weights(), b, size);
  } else if (p.ids() == nullptr) {
    const std::int32_t n = count_below(q, p.size());
    common = listed_overlap(p.weights(), a, q.ids(), q.weights(), b, n);
  } else if (q.ids() == nullptr) {
    const std::int32_t n = count_below(p, q.size());
    common = listed_overlap(q.weights(), b, p.ids(), p.weights(), a, n);
  } else {
    for_each_shared(p, q, [&](std::int32_t i, std::int32_t j) {
      common += std::min(p.weights()[i] * p_scale, q.weights()[j] * q_scale);
    });
  }
  return std::max(mass - common, 0.0);
}

Distribution excess_of(double mass, const Distribution& p, const Distribution& q, double q_total,
                       std::vector<float>& scratch) {
  const std::int32_t size = p.size();
  if (scratch.size() < static_cast<std::size_t>(size)) scratch.resize(size);
  float* residual = scratch.data();
  const auto p_scale = static_cast<float>(mass / p.total());
  const auto q_scale = static_cast<float>(1.0 / q_total);
  if (p.ids() == nullptr && q.ids() == nullptr) {
    const std::int32_t both = std::min(size, q.size());
    kernels::excess(p.weights(), p_scale, q.weights(), q_scale, both, residual);
    kernels::scale(p.weights() + both, p_scale, size - both, residual + both);
  } else {
    kernels::scale(p.weights(), p_scale, size, residual);
    if (p.ids() == nullptr) {
      subtract_listed(residual, q.ids(), q.weights(), q_scale, count_below(q, size));
    } else {
      for_each_shared(p, q, [&](std::int32_t i, std::int32_t j) {
        residual[i] = std::max(residual[i] - q.weights()[j] * q_scale, 0.0f);
      });
    }
  }
  Distribution rest;
  rest.refer(residual, size, p.ids(), kernels::sum(residual, size));
  return rest;
}

std::int32_t sample_excess(double mass, const Distribution& p, const Distribution& q, double u,
                           std::vector<float>& scratch) {
  const Distribution rest = excess_of(mass, p, q, q.total(), scratch);
  return rest.total() > 0 ? rest.sample(u) : p.sample(u);
}

}  // namespace specdec
