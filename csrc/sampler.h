#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "distribution.h"
#include "logits.h"
#include "sequence.h"
#include "truncation.h"

namespace specdec {

// How logits become a distribution. Applied in this order: logit bias, repetition penalty,
// presence and frequency penalty, temperature, top-k, top-p, min-p.
struct SamplingOptions {
  double temperature = 1;         // 0: always the most probable token
  std::int32_t top_k = 0;         // keep the k most probable tokens; 0: all
  double top_p = 1;               // keep the smallest set with at least this mass
  double min_p = 0;               // keep tokens with at least this fraction of the greatest
  double repetition_penalty = 1;  // divides (or multiplies, below 0) logits of tokens seen
  double presence_penalty = 0;    // subtracted for tokens generated before
  double frequency_penalty = 0;   // subtracted once for each time a token was generated
  std::vector<std::pair<std::int32_t, double>> logit_bias;  // (id, added to its logit)
  std::uint64_t seed = 0;

  bool greedy() const { return temperature == 0; }
};

// Turns rows of logits into distributions or argmaxes. Knows the tokens so far as far as the
// penalties need them: those committed, and the drafts that a row is conditioned on.
class Sampler {
 public:
  void start(SamplingOptions options, std::int32_t vocabulary, const Sequence& sequence);

  const SamplingOptions& options() const { return options_; }

  // What the options take from a row.
  Wanted wanted() const;

  // The most probable token. Changes the row's logits where penalties or biases apply.
  std::int32_t argmax(const LogitRow& row);

  // The n <= kMaxCandidates most probable tokens; returns how many there are: at least 1, and only
  // that where the row gives no more than its best. Changes the logits as argmax() does.
  std::int32_t best(const LogitRow& row, std::int32_t n, std::int32_t* tokens);

  // The probabilities, at temperature 1, of what best() gave of a row with logits.
  void confidences(const LogitRow& row, const std::int32_t* tokens, std::int32_t n,
                   float* probabilities) const;

  // The row's distribution. In place: `out` refers to row.logits, which become weights, unless they
  // are truncated. Otherwise the weights are out's own and the row may be reused.
  // For a race alone `out` may refer to the row's logits, whatever in_place is.
  void distribution(const LogitRow& row, bool in_place, Distribution& out, bool race = false);

  // The token that follows is conditioned on `token` too; unsee() takes back the latest ones.
  void see(std::int32_t token);
  void unsee(std::int32_t count);

 private:
  bool penalises() const;
  void adjust(const LogitRow& row);  // biases and penalties, on the logits themselves
  Truncation::Limits limits() const {
    return {options_.top_k, options_.top_p, options_.min_p};
  }

  SamplingOptions options_;
  // Tokens seen, only kept where a penalty is set.
  struct Counts {
    std::int32_t prompt = 0;
    std::int32_t generated = 0;
  };
  std::vector<Counts> counts_;        // [vocabulary]
  std::vector<std::int32_t> seen_;    // ids with a count, each once
  std::vector<std::int32_t> recent_;  // generated tokens, for unsee()
  Truncation truncation_;
};

}  // namespace specdec
