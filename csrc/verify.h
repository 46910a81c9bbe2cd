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
//
// A draft may have siblings: other candidates for its position, which no draft follows. A round
// then is a chain with leaves. Where the target's choice is a function of its distribution (greedy,
// coupled), a candidate is accepted that is this choice; the rules that sample take Rule::token's
// way with siblings, and Rule::block is for chains alone.

namespace specdec {

enum class Rule { greedy, token, block, coupled };

struct Verdict {
  std::int32_t accepted;  // in 0..k
  std::int32_t next;      // the token that follows the accepted drafts
  std::int32_t sibling = -1;  // in place of the last accepted draft, which of all siblings; -1: none
};

struct Drafts {
  const std::int32_t* tokens;  // [k]
  const Distribution* q;       // [k]
  std::int32_t k;
  // Draft i's are siblings[first_sibling[i]] to siblings[first_sibling[i + 1] - 1], in the order in
  // which they were drawn; null: there are none.
  const std::int32_t* siblings = nullptr;
  const std::int32_t* first_sibling = nullptr;  // [k + 1]

  std::int32_t first(std::int32_t i) const { return first_sibling == nullptr ? 0 : first_sibling[i]; }
};

// How many of a chain's drafts were to be expected to be accepted, given what they are, and before
// the noise that decides on them: of the first i + 1, if the chain ended there.
struct Odds {
  std::vector<double> token;  // [k] one by one
  std::vector<double> block;  // [k] as a block
};

// The target's rows. Rules ask in ascending order and only for rows that decide something, so that
// what a rejection makes irrelevant is never computed.
class TargetRows {
 public:
  virtual ~TargetRows() = default;

  // After the first i drafts, 0 <= i <= k.
  virtual const Distribution& row(std::int32_t i) = 0;

  // After a sibling: the last row that is asked for, when row() was for all drafts before it.
  virtual const Distribution& leaf(std::int32_t sibling) = 0;
};

// Temperature 0: accept while the draft is the target's most probable token.
Verdict verify_greedy(TargetRows& p, const Drafts& drafts);

// Token by token: accept with probability min(1, p/q), else draw from the normalised max(p - q, 0).
// Leviathan et al. 2211.17192, algorithm 1; Chen et al. 2302.01318, algorithm 2.
//
// Siblings must be drawn without replacement: x1 from q1 = q, x2 from q2 = q without x1, and so on.
// They are tried in that order by recursive rejection: x[j] is accepted with probability
// min(1, p[j](x[j]) / q[j](x[j])), else p[j + 1] is the normalised max(p[j] - q[j], 0), and after the
// last candidate the token is drawn from that. Then it follows p = p1, whatever q is: Jeon et al.
// 2402.14160 (RSD), recursive rejection sampling, after Miao et al. 2305.09781 (SpecInfer), whose
// candidates are drawn with replacement.
Verdict verify_token(TargetRows& p, const Drafts& drafts, const RoundNoise& noise,
                     std::vector<float>& scratch);

// The block as a whole: the longest prefix that passes its own test on the joint ratio is accepted.
// Sun et al. 2403.10444, algorithm 2 and equations 4 and 5. Accepts at least as many drafts in
// expectation as token by token. By how many, `odds` tells.
Verdict verify_block(TargetRows& p, const Drafts& drafts, const RoundNoise& noise,
                     std::vector<float>& scratch, Odds& odds);

// Target and drafter race with the same noise; accept while they agree. The text is a function of
// the target and the seed: neither drafter nor k change it. Daliri et al. 2408.07978.
Verdict verify_coupled(TargetRows& p, const Drafts& drafts, const RoundNoise& noise,
                       RaceNoise& race);

// The rule by its name; race and scratch are working memory that grows to the vocabulary. `odds` is
// written by Rule::block alone.
Verdict verify(Rule rule, TargetRows& p, const Drafts& drafts, const RoundNoise& noise,
               RaceNoise& race, std::vector<float>& scratch, Odds& odds);

}  // namespace specdec
