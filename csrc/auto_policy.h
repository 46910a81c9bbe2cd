#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "acceptance.h"
#include "draft_policy.h"
#include "round_costs.h"

namespace specdec {

constexpr std::int32_t kAuto = -1;  // in place of a draft length or width: the cost model decides

// What a round gave and cost.
struct RoundOutcome {
  static constexpr std::int32_t kNone = -1;
  static constexpr std::int32_t kUnknown = -2;  // but none of those that were checked

  std::int32_t drafted = 0;   // nodes of the chain
  std::int32_t rows = 1;      // of the target step: the nodes of all positions, and one
  std::int32_t accepted = 0;  // nodes of the chain
  // Which candidate of the position behind those the target chose: 0 the chain's, then its
  // siblings, kNone none of them.
  std::int32_t chosen = kUnknown;
  // Whether candidates that were not checked were compared with the target's choices too, which
  // then did not depend on what was.
  bool all_compared = false;
  double draft_seconds = 0;
  double target_seconds = 0;  // all that grows with the rows: the step, and acceptance
  // [drafted] of a chain that was verified as a block: how many of its first i + 1 drafts were to be
  // expected to be accepted one by one, and as a block that ends there. Else null.
  const double* by_token = nullptr;
  const double* by_block = nullptr;
};

// The cost model behind "auto": shapes each round so that committed tokens per second are as many
// as they can be.
//
// Tokens per second are a ratio of two sums over rounds, so a round should maximise its expected
// tokens - rate * seconds, where rate is what the best policy reaches (Dinkelbach 1967). What is
// added to a round is then worth its probability of being accepted less rate * seconds:
// - a candidate that was drafted: one more row of the target's step;
// - one more step of the drafter: that step, its row, and what may follow it.
// Costs: RoundCosts. Probabilities: AcceptanceModel. Leviathan et al. 2211.17192, section 3.5 is
// the case of a constant acceptance; stopping by the drafter's confidence: Huang et al.,
// 2405.19715 (SpecDec++).
//
// Where chains are verified as blocks a round has siblings or that: whichever is expected to bring
// more. Both the sampled rules' text follows the target whatever the choice, as it is made before
// the round's first draft is drawn and from earlier rounds alone: given those, the round is one of
// a rule that is lossless by itself.
//
// Where no draft is worth its time rounds are plain. Looking whether that has changed, and trying
// shapes that were never measured, is paid out of a purse that fills by a fixed share of the time.
// Another purse holds what drafting has gained over plain decoding: when it is empty rounds are
// plain whatever the model expects, so that a model that is wrong cannot go on losing.
//
// Deterministic and without a clock or a device. One thread at a time.
class AutoPolicy final : public DraftPolicy {
 public:
  static constexpr std::int32_t kWidest = 8;  // candidates of a position

  // Chains of at most `longest` drafts, target steps of at most `rows` rows.
  AutoPolicy(std::int32_t longest, std::int32_t rows);

  // A new prompt: its first round pays for set-up, and its text may be of another kind.
  void start_stream();

  // The next round comes behind so many tokens: StepCosts::move_behind().
  void move_behind(std::int32_t length);

  // Candidates for each position that the user set, or kAuto.
  void set_width(std::int32_t width) { fixed_width_ = width; }

  // For rounds whose steps are shared, from the next one on; null: they are not.
  void set_shared(const std::optional<SharedCosts>& costs) { costs_.share(costs); }

  // Tokens that a round is expected to gain by drafting, where sequences decide together
  // (Company::begin()); none where it is to be plain in any case.
  std::optional<double> gain(const DraftLimits& limits);

  DraftPlan begin(const DraftLimits& limits) override;
  Branch branch(std::int32_t depth, const float* probabilities, std::int32_t n) override;
  void observe(const RoundOutcome& outcome);

  // Committed tokens per second that are expected with drafting as decided here, and without.
  double expected_rate() const { return rate(); }
  double plain_rate() const { return 1 / seconds(1); }
  double seconds(std::int32_t rows) const { return costs_.target(rows); }  // of a target step

 private:
  struct Outlook {
    double gain = 0;          // tokens, less the rate times the seconds
    std::int32_t drafts = 0;  // more of the chain
  };

  // What was drafted at one depth of this round.
  struct Position {
    std::array<float, kWidest> confidences;  // of the candidates, the chain's first
    std::int32_t candidates;
    std::int32_t nodes;
  };

  double rate() const;
  void weigh(const DraftLimits& limits);
  double rows_cost(std::int32_t rows, std::int32_t more) const;
  Outlook outlook(std::int32_t depth, double reached, float before, std::int32_t rows) const;
  Outlook outlook(std::int32_t depth, double reached, float before, std::int32_t rows,
                  std::int32_t width, bool choosing) const;
  std::int32_t choose_depth();
  bool probes(double gain);
  bool looks(double gain);
  bool plain_is_due(double gain) const;
  std::int32_t siblings(const Position& position, double before, std::int32_t behind) const;
  void learn(const RoundOutcome& outcome);
  void learn_block(const RoundOutcome& outcome);
  void choose_width();
  void choose_lookup();
  AcceptanceModel& source() { return plan_.lookup ? looked_up_ : acceptance_; }
  const AcceptanceModel& source() const { return plan_.lookup ? looked_up_ : acceptance_; }
  double draft_cost(std::int32_t depth) const;
  double worth(std::int32_t depth, double reached) const;
  void account(double tokens, double plain_steps);

  RoundCosts costs_;
  AcceptanceModel acceptance_;
  AcceptanceModel looked_up_;  // of drafts that were looked up, which cost no step of the drafter
  bool first_ = true;  // the round is a stream's first

  std::int32_t fixed_width_ = 1;

  // The round.
  DraftLimits limits_{};
  DraftPlan plan_{};
  bool block_ = false;  // its chain is verified as one
  double rate_ = 0;
  bool probing_ = false;     // drafted, or drafted on, although that is expected to lose
  std::int32_t rows_ = 1;
  double reached_ = 1;       // probability that the chain so far is accepted
  std::vector<Position> positions_;  // [depth]

  std::array<double, kWidest> mean_sibling_{};  // chance of candidate i of a position, so far

  // Over rounds, decaying: tokens, and seconds in units of a plain step.
  double tokens_ = 0;
  double steps_ = 0;
  // In tokens of plain decoding: what drafting may lose before it is stopped, and what may be lost
  // on purpose to learn something.
  double purse_;
  double probe_purse_;
  std::int32_t since_plain_ = 0;
};

}  // namespace specdec
