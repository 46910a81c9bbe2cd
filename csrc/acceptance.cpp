#include "acceptance.h"

#include <algorithm>

namespace specdec {
namespace {

constexpr double kKeep = 0.99;       // remembers some 100 observations
constexpr double kKeepUnseen = 0.99;  // of what was seen of depths that a round did not reach
constexpr double kGuess = 0.5;        // of a draft whose probability is not known
constexpr double kSiblingGuess = 0.1;
constexpr double kGuessWeight = 2;    // observations that a guess counts for
constexpr double kBinWeight = 4;      // that a bin's prior counts for
constexpr double kDepthWeight = 12;    // that a depth or a bin before counts as any other for
constexpr double kBlockWeight = 2;     // accepted drafts that the depth before counts for

// Upper edges of the bins of probability; the last bin goes on to 1.
constexpr float kEdges[] = {0.06f, 0.13f, 0.22f, 0.33f, 0.45f, 0.58f, 0.72f, 0.85f, 0.95f};

double chance(double x) { return std::clamp(x, 0.005, 0.995); }

}  // namespace

AcceptanceModel::AcceptanceModel(std::int32_t max_depth)
    : depth_(static_cast<std::size_t>(max_depth)),
      next_(static_cast<std::size_t>(max_depth)),
      mean_next_(static_cast<std::size_t>(max_depth)),
      block_(static_cast<std::size_t>(max_depth)),
      mean_block_(static_cast<std::size_t>(max_depth), 1.0) {
  refresh();
}

void AcceptanceModel::Count::add(double what, double instead_of) {
  happened = happened * kKeep + what;
  expected = expected * kKeep + instead_of;
}

void AcceptanceModel::Count::fade(double most) {
  if (expected <= most) return;
  happened *= most / expected;
  expected = most;
}

void AcceptanceModel::Count::age(double keep) {
  happened *= keep;
  expected *= keep;
}

double AcceptanceModel::Count::ratio(double prior, double weight) const {
  return (happened + prior * weight) / (expected + weight);
}

std::int32_t AcceptanceModel::bin(float confidence) {
  if (!(confidence >= 0)) return kBins;
  const float* end = std::end(kEdges);
  return static_cast<std::int32_t>(std::upper_bound(std::begin(kEdges), end, confidence) -
                                   std::begin(kEdges));
}

double AcceptanceModel::prior(float confidence) const {
  const double own = confidence >= 0 ? confidence : kGuess;
  return chance(own * drafter_.ratio(1, kGuessWeight * kGuess));
}

double AcceptanceModel::chain(std::int32_t depth, float confidence) const {
  const double binned = chain_[bin(confidence)].ratio(prior(confidence), kBinWeight);
  return chance(binned * depth_[depth].ratio(1, kDepthWeight));
}

double AcceptanceModel::sibling(float confidence) const {
  const double own = confidence >= 0 ? confidence : kSiblingGuess;
  const double prior = chance(own * other_.ratio(1, kGuessWeight * kSiblingGuess));
  return chance(sibling_[bin(confidence)].ratio(prior, kBinWeight));
}

void AcceptanceModel::refresh() {
  // What little is known of a depth leans on the one before it.
  double mean = kGuess;
  for (std::size_t i = 0; i < next_.size(); ++i) {
    mean_next_[i] = mean = next_[i].ratio(mean, i == 0 ? kGuessWeight : kBinWeight);
  }
  // A single draft is the same either way.
  double more = 1;
  for (std::size_t i = 1; i < block_.size(); ++i) {
    mean_block_[i] = more = std::max(block_[i].ratio(more, kBlockWeight), 1.0);
  }
}

double AcceptanceModel::next(std::int32_t depth, float before) const {
  const double mean = mean_next_[depth];
  if (depth == 0) return chance(mean);
  return chance(mean * next_after_[bin(before)].ratio(1, kDepthWeight));
}

void AcceptanceModel::add_chain(std::int32_t depth, float confidence, double accepted,
                                double weight) {
  const double hit = weight * accepted;
  Count& binned = chain_[bin(confidence)];
  depth_[depth].add(hit, weight * chance(binned.ratio(prior(confidence), kBinWeight)));
  drafter_.add(hit, weight * (confidence >= 0 ? confidence : kGuess));
  binned.add(hit, weight);
}

void AcceptanceModel::add_sibling(float confidence, bool chosen) {
  const double hit = chosen ? 1 : 0;
  other_.add(hit, confidence >= 0 ? confidence : kSiblingGuess);
  sibling_[bin(confidence)].add(hit, 1);
}

void AcceptanceModel::add_next(std::int32_t depth, float before, double accepted, double weight) {
  const double hit = weight * accepted;
  if (depth > 0) next_after_[bin(before)].add(hit, weight * mean_next_[depth]);
  next_[depth].add(hit, weight);  // and mean_next_ at the end of the round
}

void AcceptanceModel::add_block(std::int32_t depth, double in_block, double by_itself) {
  block_[depth].add(in_block, by_itself);
}

void AcceptanceModel::end_round(std::int32_t depth) {
  if (depth < 1) return;  // a plain round: nothing was looked at, and nothing is to be looked for
  for (auto i = static_cast<std::size_t>(depth); i < next_.size(); ++i) {
    next_[i].age(kKeepUnseen);
    depth_[i].age(kKeepUnseen);
  }
  for (Count& count : next_after_) count.age(kKeepUnseen);
  refresh();
}

void AcceptanceModel::fade(double observations) {
  for (Count& count : chain_) count.fade(observations);
  for (Count& count : sibling_) count.fade(observations);
  for (Count& count : next_) count.fade(observations);
  for (Count& count : next_after_) count.fade(observations);
  for (Count& count : depth_) count.fade(observations);
  for (Count& count : block_) count.fade(observations);
  drafter_.fade(observations);
  other_.fade(observations);
  refresh();
}

}  // namespace specdec
