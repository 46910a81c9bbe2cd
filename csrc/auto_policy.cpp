#include "auto_policy.h"

#include <algorithm>

namespace specdec {
namespace {

constexpr double kRateKeep = 0.97;     // the rate remembers some 33 rounds
constexpr double kRateWeight = 8;      // rounds that the model's own idea of the rate counts for
constexpr double kStreamWeight = 16;   // observations of other prompts count for no more

constexpr double kFirstPurse = 4;      // tokens
constexpr double kMostPurse = 10;
constexpr double kRefill = 0.008;      // tokens for each plain step's time
constexpr double kFirstProbes = 0.5;
constexpr double kMostProbes = 2;
constexpr double kStreamProbes = 0.5;  // what a new prompt is worth a look
constexpr double kSiblingRate = 0.05;
constexpr double kHopeless = 0.01;     // chance of a depth to be reached that is not worth a look

constexpr std::int32_t kFirstRounds = 3;   // whose drafts are short: their cost is not known
constexpr std::int32_t kFirstMost = 4;
constexpr double kFirstReach = 0.25;       // chance of a draft to be accepted that is tried then
constexpr double kPlainEvery = 48;     // rounds without a plain one after which its cost is stale
constexpr double kPlainGain = 400;     // and rounds more for each token that drafting gains

}  // namespace

AutoPolicy::AutoPolicy(std::int32_t longest, std::int32_t rows)
    : costs_(rows),
      acceptance_(std::max(longest, 1)),
      looked_up_(std::max(longest, 1)),
      purse_(kFirstPurse),
      probe_purse_(kFirstProbes) {}

void AutoPolicy::move_behind(std::int32_t length) {
  if (costs_.move_behind(length)) since_plain_ = 0;
}

void AutoPolicy::start_stream() {
  first_ = true;
  costs_.pause();
  acceptance_.fade(kStreamWeight);
  looked_up_.fade(kStreamWeight);
  probe_purse_ = std::min(probe_purse_ + kStreamProbes, kMostProbes);
}

// The best rate of chains of a fixed length by what is expected of them, and what was reached of
// late, in tokens per second.
double AutoPolicy::rate() const {
  const double plain = seconds(1);
  double best = 1;
  double tokens = 1;
  double reached = 1;
  double drafts = 0;  // seconds
  for (std::int32_t k = 1; k <= limits_.depth; ++k) {
    reached *= source().next(k - 1, AcceptanceModel::kUnsure);
    tokens += worth(k - 1, reached);
    drafts += draft_cost(k - 1);
    best = std::max(best, tokens * plain / (seconds(1 + k) + drafts));
  }
  const double blend = (tokens_ + best * kRateWeight) / (steps_ + kRateWeight);
  return std::max(blend, 1.0) / plain;
}

// Tokens that a draft brings whose chance to be reached and accepted, draft by draft, is `reached`.
double AutoPolicy::worth(std::int32_t depth, double reached) const {
  return block_ ? reached * source().block(depth) : reached;
}

double AutoPolicy::draft_cost(std::int32_t depth) const {
  return plan_.lookup ? 0 : costs_.draft(depth);
}

double AutoPolicy::rows_cost(std::int32_t rows, std::int32_t more) const {
  return rate_ * (seconds(rows + more) - seconds(rows));
}

// The best that more drafts, from this depth on, can add to a round of so many rows. Rows that
// cost little may be worth more to the chain than to siblings before it: both are tried.
AutoPolicy::Outlook AutoPolicy::outlook(std::int32_t depth, double reached, float before,
                                        std::int32_t rows) const {
  if (fixed_width_ != kAuto) return outlook(depth, reached, before, rows, plan_.width, false);
  const Outlook chain = outlook(depth, reached, before, rows, 1, false);
  if (plan_.width == 1) return chain;
  const Outlook tree = outlook(depth, reached, before, rows, plan_.width, true);
  return tree.gain > chain.gain ? tree : chain;
}

AutoPolicy::Outlook AutoPolicy::outlook(std::int32_t depth, double reached, float before,
                                        std::int32_t rows, std::int32_t width,
                                        bool choosing) const {
  Outlook best;
  double gain = 0;
  double cost = 0;
  for (std::int32_t i = depth; i < plan_.depth && reached > kHopeless; ++i) {
    const std::int32_t first = rows;
    ++rows;
    gain -= rate_ * draft_cost(i);
    for (std::int32_t j = 1; j < width; ++j) {
      const double worth = reached * mean_sibling_[j];
      if (choosing && (rows > limits_.nodes || worth <= rows_cost(rows, 1))) break;
      gain += worth;
      ++rows;
    }
    if (rows - 1 > limits_.nodes) break;
    reached *= source().next(i, i == depth ? before : AcceptanceModel::kUnsure);
    gain += worth(i, reached);
    cost += rows_cost(first, rows - first);
    if (i == depth || gain - cost > best.gain) best = {gain - cost, i + 1 - depth};
  }
  return best;
}

bool AutoPolicy::probes(double gain) {
  if (probe_purse_ < -gain) return false;
  probing_ = true;
  return true;
}

bool AutoPolicy::looks(double gain) {
  if (!costs_.shared()) return probes(gain);
  probing_ = costs_.round() == Company::Round::look;
  return probing_;
}

bool AutoPolicy::plain_is_due(double gain) const {
  if (costs_.shared()) return costs_.round() == Company::Round::plain;
  return since_plain_ > kPlainEvery + kPlainGain * gain;
}

std::optional<double> AutoPolicy::gain(const DraftLimits& limits) {
  weigh(limits);
  if (limits.depth < 1 || costs_.runs(1) == 0 || purse_ <= 0) return {};
  plan_.depth = limits.depth;
  return outlook(0, 1, AcceptanceModel::kUnsure, 1).gain;
}

DraftPlan AutoPolicy::begin(const DraftLimits& limits) {
  positions_.clear();
  rows_ = 1;
  reached_ = 1;
  probing_ = false;
  weigh(limits);
  plan_.depth = choose_depth();
  if (limits.lookup > 0 && costs_.runs(1) > 0 && purse_ > 0) choose_lookup();
  return plan_;
}

// What a round could be, before its depth.
void AutoPolicy::weigh(const DraftLimits& limits) {
  limits_ = limits;
  const std::int32_t width = fixed_width_ == kAuto ? kWidest : fixed_width_;
  plan_.width = std::clamp(width, 1, std::max(limits.width, 1));
  plan_.probabilities = plan_.width;
  block_ = limits.blocks && (plan_.width == 1 || fixed_width_ == kAuto);
  plan_.lookup = false;
  rate_ = rate();
  if (block_ && plan_.width > 1) choose_width();
}

// What was looked up, where that is worth more than the plan.
void AutoPolicy::choose_lookup() {
  const bool drafts = plan_.depth > 0 && !probing_;
  const double model =
      drafts ? outlook(0, 1, AcceptanceModel::kUnsure, 1).gain : 0.0;
  const DraftPlan plan = plan_;
  const bool block = block_;
  plan_ = {limits_.depth, 1, 1, true};
  block_ = limits_.blocks;
  double reached = 1;
  double tokens = 0;
  double best = 0;
  for (std::int32_t i = 0; i < limits_.depth && reached > kHopeless; ++i) {
    reached *= looked_up_.chain(i, limits_.lookup);
    tokens += worth(i, reached);
    const double gain = tokens - rows_cost(1, i + 1);
    if (i == 0 || gain > best) best = gain;
  }
  if (best > model && !plain_is_due(best)) {
    probing_ = false;
    return;
  }
  if (best <= 0 && !drafts && !probing_ && probes(best)) {
    plan_.depth = 1;
    return;
  }
  plan_ = plan;
  block_ = block;
}

// Siblings, or a chain that is verified as a block.
void AutoPolicy::choose_width() {
  plan_.depth = limits_.depth;
  const Outlook chain = outlook(0, 1, AcceptanceModel::kUnsure, 1, 1, false);
  block_ = false;
  const Outlook tree = outlook(0, 1, AcceptanceModel::kUnsure, 1, plan_.width, true);
  if (tree.gain > chain.gain) return;
  block_ = true;
  plan_.width = 1;
}

std::int32_t AutoPolicy::choose_depth() {
  const std::int32_t most = limits_.depth;
  if (most < 1) return 0;
  ++since_plain_;
  if (costs_.runs(1) == 0) {
    if (costs_.shared()) return 0;
    // What a plain step costs is one half of every comparison; what a draft does is the other.
    if (since_plain_ > kFirstRounds) return 0;
    probing_ = true;
    std::int32_t k = 0;
    for (double reached = 1; k < std::min(kFirstMost, most); ++k) {
      reached *= source().next(k, AcceptanceModel::kUnsure);
      if (reached < kFirstReach) break;
    }
    return k;
  }
  plan_.depth = most;
  const double gain = outlook(0, 1, AcceptanceModel::kUnsure, 1).gain;
  if (purse_ <= 0) return 0;
  if (gain <= 0) return looks(gain) ? 1 : 0;
  return plain_is_due(gain) ? 0 : most;
}

Branch AutoPolicy::branch(std::int32_t depth, const float* probabilities, std::int32_t n) {
  Position position{};
  const std::int32_t known = std::clamp(n, 1, kWidest);
  position.candidates = std::min(known, plan_.width);
  for (std::int32_t i = 0; i < known; ++i) {
    position.confidences[i] =
        probabilities == nullptr ? AcceptanceModel::kUnsure : probabilities[i];
    double& mean = mean_sibling_[i];
    if (i > 0) mean += kSiblingRate * (source().sibling(position.confidences[i]) - mean);
  }
  const float confidence = position.confidences[0];
  const double before = reached_;
  reached_ *= source().chain(depth, confidence);

  const std::int32_t room = limits_.nodes - (rows_ - 1);
  Branch result{1, depth + 1 < plan_.depth && room > 1};
  const Outlook next =
      result.go_on ? outlook(depth + 1, reached_, confidence, rows_ + 1) : Outlook{};
  const double gain = worth(depth, reached_) - rows_cost(rows_, 1) + std::max(next.gain, 0.0);
  if (!probing_ && gain <= 0) {
    result = {0, false};
  } else if (result.go_on && next.gain <= 0) {
    // Shapes that were never measured are tried now and then.
    result.go_on = next.drafts > 0 && !probing_ && costs_.runs(1) > 0 &&
                   costs_.runs(rows_ + 2) < RoundCosts::kFewRuns && probes(next.gain);
    if (result.go_on) probe_purse_ += next.gain;
  }
  const std::int32_t behind = result.go_on ? next.drafts : 0;  // of the chain, as expected
  if (result.nodes > 0) {
    const std::int32_t most = std::clamp(room - behind, 1, position.candidates);
    result.nodes = fixed_width_ == kAuto
                       ? std::min(1 + siblings(position, before, behind), most)
                       : most;
  }
  position.nodes = result.nodes;
  rows_ += result.nodes;
  positions_.push_back(position);
  return result;
}

// How many candidates beside the chain's are worth a row each.
std::int32_t AutoPolicy::siblings(const Position& position, double before,
                                  std::int32_t behind) const {
  std::int32_t count = 0;
  std::int32_t rows = rows_ + 1 + behind;
  while (count + 1 < position.candidates && rows <= limits_.nodes) {
    const double chance = source().sibling(position.confidences[count + 1]);
    if (before * chance <= rows_cost(rows, 1)) break;
    ++count;
    ++rows;
  }
  return count;
}

void AutoPolicy::observe(const RoundOutcome& outcome) {
  const auto steps = static_cast<std::int32_t>(positions_.size());
  if (!first_) {
    const std::int32_t drafts = plan_.lookup ? 0 : steps;
    costs_.add(outcome.rows, outcome.target_seconds, drafts, outcome.draft_seconds);
  }
  first_ = false;
  if (outcome.by_token != nullptr) {
    learn_block(outcome);
  } else {
    learn(outcome);
  }
  source().end_round(steps);
  const bool sibling = outcome.accepted < outcome.drafted && outcome.chosen > 0 &&
                       outcome.chosen < positions_[outcome.accepted].nodes;
  const double tokens = 1 + outcome.accepted + (sibling ? 1 : 0);
  double cost = seconds(outcome.rows);
  for (std::int32_t i = 0; i < steps; ++i) cost += draft_cost(i);
  account(tokens, cost / seconds(1));
  if (outcome.rows == 1) since_plain_ = 0;
}

void AutoPolicy::learn(const RoundOutcome& outcome) {
  const auto steps = static_cast<std::int32_t>(positions_.size());
  float before = AcceptanceModel::kUnsure;
  for (std::int32_t i = 0; i < std::min(outcome.accepted + 1, steps); ++i) {
    const Position& position = positions_[i];
    const float confidence = position.confidences[0];
    const bool accepted = i < outcome.accepted;
    source().add_next(i, before, accepted ? 1 : 0);
    const bool all = outcome.all_compared && (accepted || outcome.chosen != RoundOutcome::kUnknown);
    const std::int32_t compared = all ? position.candidates : position.nodes;
    if (compared > 0) {
      source().add_chain(i, confidence, accepted || outcome.chosen == 0 ? 1 : 0);
    }
    for (std::int32_t j = 1; j < compared; ++j) {
      source().add_sibling(position.confidences[j], !accepted && outcome.chosen == j);
    }
    before = confidence;
  }
}

// What a block accepts of its drafts hangs on those behind them: the chances that they had one by
// one are the same quantity as after rounds with siblings, and tell more than what came of them.
void AutoPolicy::learn_block(const RoundOutcome& outcome) {
  const auto steps = static_cast<std::int32_t>(positions_.size());
  float before = AcceptanceModel::kUnsure;
  double reached = 1;
  double so_far = 0;
  double block_so_far = 0;
  for (std::int32_t i = 0; i < steps && reached > kHopeless; ++i) {
    const float confidence = positions_[i].confidences[0];
    const bool checked = i < outcome.drafted;
    const double next = checked ? outcome.by_token[i] - so_far : 0;
    const double accepted = std::clamp(next / reached, 0.0, 1.0);
    source().add_next(i, before, accepted, reached);
    if (!checked) break;
    source().add_chain(i, confidence, accepted, reached);
    source().add_block(i, outcome.by_block[i] - block_so_far, next);
    so_far = outcome.by_token[i];
    block_so_far = outcome.by_block[i];
    reached = next;
    before = confidence;
  }
}

void AutoPolicy::account(double tokens, double plain_steps) {
  tokens_ = tokens_ * kRateKeep + tokens;
  steps_ = steps_ * kRateKeep + plain_steps;
  const double refill = kRefill * plain_steps;
  if (purse_ < kFirstPurse) purse_ += refill;
  if (probe_purse_ < kMostProbes) probe_purse_ += refill;
  if (positions_.empty()) return;
  const double gain = tokens - plain_steps;
  purse_ = std::min(purse_ + gain, kMostPurse);
  if (probing_ && plan_.depth == 1) probe_purse_ = std::min(probe_purse_ + gain, kMostProbes);
}

}  // namespace specdec
