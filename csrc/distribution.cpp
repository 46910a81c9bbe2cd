#include "distribution.h"

#include <algorithm>

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

// Calls visit(p_index, q_index) for every id in both supports.
template <class Visit>
void for_each_shared(const Distribution& p, const Distribution& q, Visit visit) {
  if (p.ids() == nullptr) {
    for (std::int32_t j = 0; j < q.size(); ++j) {
      const std::int32_t id = q.id_at(j);
      if (id < p.size()) visit(id, j);
    }
    return;
  }
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

bool both_dense(const Distribution& p, const Distribution& q) {
  return p.ids() == nullptr && q.ids() == nullptr && p.size() == q.size();
}

}  // namespace

void Distribution::hold(const std::vector<Entry>& entries) {
  const auto size = static_cast<std::int32_t>(entries.size());
  float* weights = storage(size);
  held_ids_.resize(entries.size());
  double total = 0;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    held_ids_[i] = entries[i].id;
    weights[i] = entries[i].weight;
    total += weights[i];
  }
  refer(weights, size, held_ids_.data(), total);
}

void Distribution::hold_one(std::int32_t id) {
  held_ids_.assign(1, id);
  float* weights = storage(1);
  weights[0] = 1.0f;
  refer(weights, 1, held_ids_.data(), 1.0);
}

double Distribution::probability(std::int32_t token) const {
  std::int32_t index = token;
  if (ids_ != nullptr) {
    const std::int32_t* end = ids_ + size_;
    const std::int32_t* found = std::lower_bound(ids_, end, token);
    if (found == end || *found != token) return 0;
    index = static_cast<std::int32_t>(found - ids_);
  }
  if (index < 0 || index >= size_) return 0;
  return weights_[index] / total_;
}

std::int32_t Distribution::argmax() const { return id_at(kernels::argmax(weights_, size_)); }

std::int32_t Distribution::sample(double u) const {
  return id_at(index_at(weights_, size_, total_, u));
}

std::int32_t Distribution::race(const RoundNoise& noise, std::uint32_t offset,
                                 RaceNoise& race) const {
  if (ids_ == nullptr) {
    float best = 0;
    return std::max(kernels::race(weights_, race.row(noise, offset, size_), size_, best), 0);
  }
  // Of listed ids, the whole row of words is only worth making for many.
  constexpr std::int32_t kFew = 1024;
  const std::uint32_t* row =
      size_ > kFew ? race.row(noise, offset, ids_[size_ - 1] + 1) : nullptr;
  std::uint32_t words[kBlock];
  float best = 0;
  std::int32_t winner = 0;
  for (std::int32_t begin = 0; begin < size_; begin += kBlock) {
    const std::int32_t count = std::min(kBlock, size_ - begin);
    const std::int32_t* ids = ids_ + begin;
    if (row == nullptr) {
      RaceNoise::pick(noise, offset, ids, count, words);
    } else {
      for (std::int32_t i = 0; i < count; ++i) words[i] = row[ids[i]];
    }
    const std::int32_t index = kernels::race(weights_ + begin, words, count, best);
    if (index >= 0) winner = begin + index;
  }
  return ids_[winner];
}

double excess_mass(double mass, const Distribution& p, const Distribution& q) {
  // max(a - b, 0) = a - min(a, b): what the two have in common lies on q's support.
  const double p_scale = mass / p.total();
  const double q_scale = 1.0 / q.total();
  double common = 0;
  if (both_dense(p, q)) {
    common = kernels::overlap(p.weights(), static_cast<float>(p_scale), q.weights(),
                              static_cast<float>(q_scale), p.size());
  } else {
    for_each_shared(p, q, [&](std::int32_t i, std::int32_t j) {
      common += std::min(p.weights()[i] * p_scale, q.weights()[j] * q_scale);
    });
  }
  return std::max(mass - common, 0.0);
}

std::int32_t sample_excess(double mass, const Distribution& p, const Distribution& q, double u,
                           std::vector<float>& scratch) {
  const std::int32_t size = p.size();
  if (scratch.size() < static_cast<std::size_t>(size)) scratch.resize(size);
  float* residual = scratch.data();
  const auto p_scale = static_cast<float>(mass / p.total());
  const auto q_scale = static_cast<float>(1.0 / q.total());
  if (both_dense(p, q)) {
    kernels::excess(p.weights(), p_scale, q.weights(), q_scale, size, residual);
  } else {
    kernels::scale(p.weights(), p_scale, size, residual);
    for_each_shared(p, q, [&](std::int32_t i, std::int32_t j) {
      residual[i] = std::max(residual[i] - q.weights()[j] * q_scale, 0.0f);
    });
  }
  const double total = kernels::sum(residual, size);
  if (!(total > 0)) return p.sample(u);
  return p.id_at(index_at(residual, size, total, u));
}

}  // namespace specdec
