#include "draft_length.h"

#include <algorithm>

namespace specdec {
namespace {

constexpr std::int32_t kFirstChoice = 4;
constexpr std::int32_t kExploreEvery = 24;  // rounds between looks at a neighbouring k
constexpr double kAcceptanceKeep = 0.98;    // remembers some 50 observations
constexpr double kSecondsKeep = 0.95;
constexpr double kOutlier = 1.5;  // a step that took longer than this many times its mean is cut
constexpr double kSlopeGuess = 0.08;  // cost of one more row, over a step's, until measured
constexpr double kAcceptanceGuess = 0.6;  // of the first draft, until measured
constexpr double kGuessWeight = 3;        // observations that a guess counts for
constexpr double kPauseWeight = 6;        // observations from before a pause count for no more
constexpr std::int32_t kProbeRounds = 3;
constexpr std::int32_t kProbeLength = 1;  // losing costs least there

}  // namespace

void DraftLength::Mean::add(double x, double keep) {
  weight = weight * keep + 1;
  value += (x - value) / weight;
}

void DraftLength::Mean::add_seconds(double seconds) {
  // One interrupted step must not change the choice; a lasting change is learnt in a few steps.
  add(weight > 0 ? std::min(seconds, kOutlier * value) : seconds, kSecondsKeep);
}

DraftLength::DraftLength(std::int32_t max_k)
    : max_k_(max_k), acceptance_(max_k), target_seconds_(max_k + 1) {}

double DraftLength::target_seconds(std::int32_t k) const {
  const auto& known = target_seconds_;
  if (known[k].weight > 0) return known[k].value;
  // On a line through the nearest measured widths on either side, else through the nearest two.
  std::int32_t below = k;
  while (below >= 0 && known[below].weight == 0) --below;
  std::int32_t above = k;
  while (above <= max_k_ && known[above].weight == 0) ++above;
  if (below < 0 && above > max_k_) return 1;
  if (below >= 0 && above <= max_k_) {
    const double share = static_cast<double>(k - below) / (above - below);
    return known[below].value + share * (known[above].value - known[below].value);
  }
  const std::int32_t near = below >= 0 ? below : above;
  const std::int32_t step = below >= 0 ? -1 : 1;
  std::int32_t far = near + step;
  while (far >= 0 && far <= max_k_ && known[far].weight == 0) far += step;
  double slope = kSlopeGuess * known[near].value;
  if (far >= 0 && far <= max_k_) {
    slope = std::max((known[near].value - known[far].value) / (near - far), 0.0);
  }
  return std::max(known[near].value + slope * (k - near), 0.3 * known[near].value);
}

double DraftLength::rate(std::int32_t k) const {
  double tokens = 1;
  double reached = 1;
  // What little is known of a position leans on the one before it.
  double acceptance = kAcceptanceGuess;
  for (std::int32_t i = 0; i < k; ++i) {
    const Mean& seen = acceptance_[i];
    acceptance = (seen.value * seen.weight + acceptance * kGuessWeight) /
                 (seen.weight + kGuessWeight);
    reached *= acceptance;
    tokens += reached;
  }
  return tokens / (target_seconds(k) + k * draft_seconds_.value);
}

std::int32_t DraftLength::best() const {
  std::int32_t best = 0;
  for (std::int32_t k = 1; k <= max_k_; ++k) {
    if (rate(k) > rate(best)) best = k;
  }
  return best;
}

std::int32_t DraftLength::choose() {
  if (rounds_ < 2) return std::min(kFirstChoice, max_k_);  // nothing is measured yet
  if (rounds_ == 2) return 0;  // what a plain step costs is the other half of every comparison
  if (plain_rounds_left_ > 0) {
    --plain_rounds_left_;
    if (plain_rounds_left_ == 0) probe_rounds_left_ = kProbeRounds;
    return 0;
  }
  if (probe_rounds_left_ > 0) {  // had drafting become worth it meanwhile?
    --probe_rounds_left_;
    return std::min(kProbeLength, max_k_);
  }
  const std::int32_t k = best();
  if (k == 0) {
    plain_rounds_left_ = plain_rounds_;
    plain_rounds_ = std::min(2 * plain_rounds_, kLongestPause);
    for (Mean& mean : acceptance_) mean.weight = std::min(mean.weight, kPauseWeight);
    return 0;
  }
  plain_rounds_ = kFirstPause;
  if (rounds_ % kExploreEvery == 0) {
    const bool up = (rounds_ / kExploreEvery) % 2 == 1;
    return std::clamp(up ? k + 1 : k - 1, 1, max_k_);
  }
  return k;
}

void DraftLength::observe(const RoundCost& round) {
  ++rounds_;
  const std::int32_t k = std::min(round.drafted, max_k_);
  // The first step of a stream pays for its set-up: a cost that says nothing about the next.
  if (rounds_ > 1) {
    target_seconds_[k].add_seconds(round.target_seconds);
    if (k > 0) draft_seconds_.add_seconds(round.draft_seconds / k);
  }
  for (std::int32_t i = 0; i < k; ++i) {
    const bool accepted = i < round.accepted;
    acceptance_[i].add(accepted ? 1 : 0, kAcceptanceKeep);
    if (!accepted) break;
  }
}

}  // namespace specdec
