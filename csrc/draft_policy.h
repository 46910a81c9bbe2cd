#pragma once

#include <algorithm>
#include <cstdint>

namespace specdec {

// What becomes of the candidates of one drafter step.
struct Branch {
  std::int32_t nodes;  // how many of them the target checks, in order; the first is the chain's
  bool go_on;          // whether to draft on behind the first; false where nodes is 0
};

// Decides the shape of a round's proposal while it is drafted: after each step of the drafter,
// how many candidates of that depth become nodes, and whether one more step is worth its time.
class DraftPolicy {
 public:
  virtual ~DraftPolicy() = default;

  // The candidates of a position that could become nodes: more are not looked at. At least 1.
  virtual std::int32_t width() const = 0;

  // Whether branch() reads probabilities; where not, it may be given null and they need not be
  // computed.
  virtual bool reads_probabilities() const = 0;

  // Called once for each step of the drafter, in order, for depth 0, 1, ... until go_on is false.
  // probabilities[n], n >= 1, null where unknown:
  // - temperature 0 and `coupled`, where the target's choice does not depend on the drafts: the
  //   drafter's probabilities of its candidates, the chain's first;
  // - `token` and `block`: the n greatest of its distribution, whichever were drawn. A drawn
  //   token that could be left out because of what it is would bend the distribution of the text;
  //   nodes is then at least 1.
  // What the numbers are does not have to be exact: they are calibrated by what is accepted.
  virtual Branch branch(std::int32_t depth, const float* probabilities, std::int32_t n) = 0;
};

// A draft length and a number of candidates per position that the user set.
class FixedPolicy final : public DraftPolicy {
 public:
  FixedPolicy(std::int32_t length, std::int32_t width) : length_(length), width_(width) {}

  std::int32_t width() const override { return width_; }
  bool reads_probabilities() const override { return false; }
  Branch branch(std::int32_t depth, const float*, std::int32_t n) override {
    return {std::min(width_, n), depth + 1 < length_};
  }

 private:
  std::int32_t length_;
  std::int32_t width_;
};

}  // namespace specdec
