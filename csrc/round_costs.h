#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "step_costs.h"

namespace specdec {

// Who of the sequences that share steps drafts with whom. One that drafts where the others do not
// pays for a step of the drafter alone, and one that looks whether drafting pays by now makes all of
// them wait: so they decide together, and look together.
class Company {
 public:
  enum class Round {
    free,   // who gains by drafting drafts
    look,   // who does not drafts once: none did for a while
    plain,  // nobody drafts: what that costs was not measured for a while
  };

  // A round of so many sequences begins. gain(i): tokens that sequence i expects of drafting, going by
  // at(); none where it cannot draft. Those draft who gain while just they do.
  void begin(std::int32_t sequences,
             const std::function<std::optional<double>(std::int32_t)>& gain);

  // So many drafted for the position `depth` of the round, 0: none; called for 0 in every round, and
  // up to the first that nobody drafts for.
  void add(std::int32_t depth, std::int32_t drafting);

  Round round() const { return round_; }

  // How many draft for the position, at least one: for the first those that gain, and for the others
  // as many of those as a mean over the rounds.
  double at(std::int32_t depth) const;

 private:
  Round round_ = Round::free;
  std::int32_t drafting_ = 1;
  std::int32_t began_ = 0;       // drafted for the first position of the round
  std::vector<double> share_;    // [depth] of those; where nobody drafts it goes back to all
  std::int32_t since_draft_ = 0;  // rounds
  std::int32_t since_plain_ = 0;
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
  Company::Round round() const { return shared_->company->round(); }  // where steps are shared

  // Seconds of a target step, and of the drafter's for the position `depth` of a round.
  double target(std::int32_t rows) const;
  double draft(std::int32_t depth) const;

  // How often the target ran so many rows, or costs of so many are known from steps like it.
  std::int32_t runs(std::int32_t rows) const;

  // What a round took, of so many rows and drafter steps. What is shared is measured elsewhere.
  void add(std::int32_t rows, double target_seconds, std::int32_t drafts, double draft_seconds);
  void pause() { own_.pause(); }
  bool move_behind(std::int32_t length) { return own_.move_behind(length); }

 private:
  StepCosts own_;
  std::optional<SharedCosts> shared_;
};

}  // namespace specdec
