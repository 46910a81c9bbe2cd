#pragma once

#include <cstdint>
#include <vector>

#include "noise.h"
#include "race_noise.h"

namespace specdec {

constexpr std::int32_t kMaxCandidates = 8;  // drafts for one position of a round

// A probability distribution over the target's vocabulary as unnormalised weights on a support.
// The support is every id from 0 (ids() null), or ids() in ascending order.
class Distribution {
 public:
  // Refers to weights[size] and ids[size] (or null) that the caller keeps alive and unchanged.
  void refer(const float* weights, std::int32_t size, const std::int32_t* ids, double total) {
    weights_ = weights;
    size_ = size;
    ids_ = ids;
    total_ = total;
    scale_ = 0;
  }

  // Refers to logits, whose weights are 2^((logit - greatest) * scale): for race() alone, which needs
  // few of them.
  void refer_logits(const float* logits, std::int32_t size, const std::int32_t* ids, float greatest,
                    float scale) {
    refer(logits, size, ids, 0);
    greatest_ = greatest;
    scale_ = scale;
  }

  // Refers to this object's own storage: only ids[n], ascending, have mass, weights[n].
  void hold(const std::int32_t* ids, const float* weights, std::int32_t n);
  void hold_one(std::int32_t id);

  // This object's own room for size weights, for refer().
  float* storage(std::int32_t size) {
    if (held_weights_.size() < static_cast<std::size_t>(size)) held_weights_.resize(size);
    return held_weights_.data();
  }

  const float* weights() const { return weights_; }
  const std::int32_t* ids() const { return ids_; }
  std::int32_t size() const { return size_; }
  double total() const { return total_; }
  std::int32_t id_at(std::int32_t index) const { return ids_ == nullptr ? index : ids_[index]; }

  double probability(std::int32_t token) const;
  float weight(std::int32_t token) const;

  // What all tokens but tokens[n] weigh together, n <= kMaxCandidates.
  double total_without(const std::int32_t* tokens, std::int32_t n) const;

  // The most probable tokens' probabilities, in descending order; returns how many of
  // n <= kMaxCandidates there are.
  std::int32_t greatest(std::int32_t n, float* probabilities) const;

  // The most probable token, the first of equals.
  std::int32_t argmax() const;

  // The token at quantile u in [0, 1): the inverse of the cumulative weights.
  std::int32_t sample(double u) const;

  // The winner of the exponential race, argmin over x of E(seed, position, x) / weight(x), which
  // is the Gumbel-max trick without its logarithm: distributed as this distribution, and the same
  // noise for everyone who races at this seed and position, noise.position + offset.
  std::int32_t race(const RoundNoise& noise, std::uint32_t offset, RaceNoise& race) const {
    std::int32_t winner = 0;
    this->race(noise, offset, race, 1, &winner);
    return winner;
  }

  // The first n <= kMaxCandidates to arrive in that race, which is n tokens drawn without replacement; returns how
  // many there are: at least 1, and fewer than n only where no others have weight.
  std::int32_t race(const RoundNoise& noise, std::uint32_t offset, RaceNoise& race, std::int32_t n,
                    std::int32_t* winners) const;

  // Draws after sample(u) gave tokens[0], without replacement: tokens[i] at quantile us[i] of what
  // is left. Returns how many of the n there are, the first included. For a distribution in its own
  // storage, which is left as it was.
  std::int32_t sample_others(const double* us, std::int32_t n, std::int32_t* tokens);

 private:
  std::int32_t index_of(std::int32_t token) const;  // -1 where it is not in the support

  const float* weights_ = nullptr;
  const std::int32_t* ids_ = nullptr;
  std::int32_t size_ = 0;
  double total_ = 0;
  float greatest_ = 0;
  float scale_ = 0;  // not 0: weights_ are logits
  std::vector<float> held_weights_;
  std::vector<std::int32_t> held_ids_;
};

// Sum over x of max(mass * p(x) - q(x), 0), for mass in [0, 1].
double excess_mass(double mass, const Distribution& p, const Distribution& q);

// The normalised max(mass * p(x) - q(x) / q_total, 0), in `scratch`, where q(x) are weights: what is
// left of p to draw from when a draft was rejected. p may stand in `scratch` itself. Its total is
// zero where it is zero everywhere.
Distribution excess_of(double mass, const Distribution& p, const Distribution& q, double q_total,
                       std::vector<float>& scratch);

// A token from the normalised max(mass * p(x) - q(x), 0) at quantile u; from p where that is zero
// everywhere (then no exact arithmetic ever asks for it). scratch grows to p's support.
std::int32_t sample_excess(double mass, const Distribution& p, const Distribution& q, double u,
                           std::vector<float>& scratch);

}  // namespace specdec
