#pragma once

#include <cstdint>
#include <vector>

#include "distribution.h"
#include "noise.h"

// Lossless acceptance rules, as functions of their arguments alone.
//
// All take the k draft tokens of a round, the target's k + 1 distributions p (row i is conditioned
// on the first i drafts) and the drafter's k distributions q (row i is what draft i was drawn
// from), each after temperature, truncation and penalties. They say how many drafts are accepted
// and which token follows them, so that the text is distributed as the target's.

namespace specdec {

enum class Rule { greedy, token, block, coupled };

struct Verdict {
  std::int32_t accepted;  // in 0..k
  std::int32_t next;      // the token that follows the accepted drafts
};

struct Drafts {
  const std::int32_t* tokens;  // [k]
  const Distribution* q;       // [k]
  std::int32_t k;
};

// The target's k + 1 rows. Rules ask in ascending order and only for rows that decide something,
// so that what a rejection makes irrelevant is never computed.
class TargetRows {
 public:
  virtual ~TargetRows() = default;
  virtual const Distribution& row(std::int32_t i) = 0;
};

// Temperature 0: accept while the draft is the target's most probable token.
Verdict verify_greedy(TargetRows& p, const Drafts& drafts);

// Token by token: accept with probability min(1, p/q), else draw from the normalised max(p - q, 0).
// Leviathan et al. 2211.17192, algorithm 1; Chen et al. 2302.01318, algorithm 2.
Verdict verify_token(TargetRows& p, const Drafts& drafts, const RoundNoise& noise,
                     std::vector<float>& scratch);

// The block as a whole: the longest prefix that passes its own test on the joint ratio is accepted.
// Sun et al. 2403.10444, algorithm 2 and equations 4 and 5. Accepts at least as many drafts in
// expectation as token by token.
Verdict verify_block(TargetRows& p, const Drafts& drafts, const RoundNoise& noise,
                     std::vector<float>& scratch);

// Target and drafter race with the same noise; accept while they agree. The text is a function of
// the target and the seed: neither drafter nor k change it. Daliri et al. 2408.07978.
Verdict verify_coupled(TargetRows& p, const Drafts& drafts, const RoundNoise& noise,
                       RaceNoise& race);

// The rule by its name; race and scratch are working memory that grows to the vocabulary.
Verdict verify(Rule rule, TargetRows& p, const Drafts& drafts, const RoundNoise& noise,
               RaceNoise& race, std::vector<float>& scratch);

}  // namespace specdec
