#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "step_costs.h"

namespace specdec {

// How many of the sequences that share steps draft for a position, as a mean over the rounds: who
// drafts where the others do not pays for a step of the drafter alone.
class Company {
 public:
  // So many of all drafted for the position `depth` of a round, 0: none.
  void add(std::int32_t depth, std::int32_t drafting, std::int32_t sequences);

  // At least one of all.
  double at(std::int32_t depth, std::int32_t sequences) const;

 private:
  std::vector<double> share_;  // [depth] of the sequences; where nobody drafts it goes back to all
};

// What steps cost one of several sequences that share them. Of the target's step: what all pay, over
// their number, if all had so many rows. Of the drafter's: its share among those that draft so far.
// By what its own steps cost it a sequence would find drafting dear as long as it is the only one,
// and as cheap as the first rows of a step where the others have filled it.
struct SharedCosts {
  const StepCosts* target;  // by the rows of all sequences
  const StepCosts* draft;   // the same of the drafter's step; null: drafts that cost no step
  const Company* company;
  std::int32_t sequences;
};

// What the steps of a round cost one sequence: its own steps, or its part of those that it shares.
class RoundCosts {
 public:
  static constexpr std::int32_t kFewRuns = 2;  // of a width, after which its cost counts as known

  // Of target steps of at most `rows` rows.
  explicit RoundCosts(std::int32_t rows) : own_(rows) {}

  // From the next round on; null: its steps are its own.
  void share(const std::optional<SharedCosts>& costs) { shared_ = costs; }
  bool shared() const { return shared_.has_value(); }

  // Seconds of a target step, and of the drafter's for the position `depth` of a round.
  double target(std::int32_t rows) const;
  double draft(std::int32_t depth) const;

  // How often the target ran so many rows, or costs of so many are known from steps like it.
  std::int32_t runs(std::int32_t rows) const;

  // What a round took, of so many rows and drafter steps. What is shared is measured elsewhere.
  void add(std::int32_t rows, double target_seconds, std::int32_t drafts, double draft_seconds);
  void pause() { own_.pause(); }
  void forget() { own_ = StepCosts(own_.max_rows()); }

 private:
  StepCosts own_;
  std::optional<SharedCosts> shared_;
};

}  // namespace specdec
