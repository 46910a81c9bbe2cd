#pragma once

#include <algorithm>
#include <cstdint>

namespace specdec {

// The most that a round may draft.
struct DraftLimits {
  std::int32_t depth;  // drafts that follow each other
  std::int32_t nodes;  // drafts in all, at least `depth`
  std::int32_t width;  // candidates for one position
  // Whether chains are verified as blocks, which accepts more of their drafts; with siblings drafts
  // are checked one by one.
  bool blocks = false;
  // How sure the drafter is of a continuation that it looked up and that costs no step; 0: none.
  float lookup = 0;
};

// What a round is to be, as far as that is known before it.
struct DraftPlan {
  std::int32_t depth;  // drafts that may follow each other at most; 0: nothing is drafted
  std::int32_t width;  // candidates that any position may have at most
  // How many of a position's probabilities branch() reads, `width` or more; 0: none. To find them
  // costs a pass over the logits.
  std::int32_t probabilities;
  bool lookup = false;  // draft what was looked up, else what the model says
};

// What becomes of one position: `nodes` of its candidates are checked by the target, and the round
// goes on behind the first of them, or not. Its others are leaves.
struct Branch {
  std::int32_t nodes;
  bool go_on;
};

// Decides how long, and how wide, drafting is worth it: asked before a round and after each of the
// drafter's steps.
//
// A plan may depend on the rounds before alone. What branch() makes of the probabilities is as free:
// it is never told which tokens a rule that samples has drawn, since accepted tokens would not
// follow the target's distribution if whether a draft is checked depended on what it is.
class DraftPolicy {
 public:
  virtual ~DraftPolicy() = default;

  virtual DraftPlan begin(const DraftLimits& limits) = 0;

  // After the step that gave the candidates of position `depth`, counted from 0. probabilities[n]
  // are the drafter's: for the rules greedy and coupled of the candidates, in their order; for
  // token and block the n greatest. Null where the plan asks for none, or the drafter has none.
  // n is at least 1 and at most what the plan asks for, or its width where that is none, and less
  // only where the drafter has no more. Of `nodes`, what exceeds n, the plan's width or the limits
  // is not taken, and 0 ends the round as well.
  virtual Branch branch(std::int32_t depth, const float* probabilities, std::int32_t n) = 0;
};

// A draft length and width that are set: every position gets its width, as long as there are nodes
// left for all positions behind it.
class FixedDraft final : public DraftPolicy {
 public:
  FixedDraft(std::int32_t depth, std::int32_t width) : depth_(depth), width_(width) {}

  // Not inline: GCC 12 guesses that the engine's policy may be of this type, and then takes what it
  // would write into another type's place for a mistake.
  DraftPlan begin(const DraftLimits& limits) override;

  Branch branch(std::int32_t depth, const float*, std::int32_t n) override {
    const std::int32_t behind = plan_.depth - depth - 1;
    const std::int32_t nodes = std::min({n, plan_.width, nodes_left_ - behind});
    nodes_left_ -= nodes;
    return {nodes, behind > 0};
  }

 private:
  std::int32_t depth_;
  std::int32_t width_;
  DraftPlan plan_{};
  std::int32_t nodes_left_ = 0;
};

}  // namespace specdec
