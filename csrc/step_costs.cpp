#include "step_costs.h"

#include <algorithm>
#include <cmath>

namespace specdec {
namespace {

constexpr double kSlopeGuess = 0.06;   // cost of one more row, over one row's step
constexpr double kSlopeWeight = 2;     // how many row-widths of evidence that guess counts for
constexpr double kDraftGuess = 0.2;    // cost of a drafter step, over a target step of one row
constexpr double kUnknown = 0.02;      // variance of the log of what was never measured
constexpr double kDraftUnknown = 4;    // the same of a drafter step: a lookup costs nearly nothing
constexpr double kOffLine = 0.0025;    // variance of the log of a width around the fitted line
constexpr double kScaleDrift = 1e-4;   // variance that each step adds to the scale
constexpr double kShapeDrift = 4e-6;   // and to each shape
constexpr double kPauseDrift = 0.01;   // that a pause adds to the scale
constexpr std::int32_t kSameCosts = 1024;  // tokens of context by which steps differ that cost the same
constexpr double kFirstSpread = 0.05;
constexpr double kLeastSpread = 0.005;
constexpr double kSpreadRate = 0.05;
constexpr double kOutlier = 3;         // deviations from which on a measurement counts for less
constexpr double kShortest = 1e-9;     // seconds: a lookup may take less than the clock can tell

}  // namespace

StepCosts::StepCosts(std::int32_t max_rows)
    : max_rows_(max_rows),
      scale_{0, 1},
      draft_{std::log(kDraftGuess), kDraftUnknown},
      shape_(static_cast<std::size_t>(max_rows) + 1),
      runs_(static_cast<std::size_t>(max_rows) + 1),
      relative_(static_cast<std::size_t>(max_rows) + 1),
      curve_(static_cast<std::size_t>(max_rows) + 1),
      draft_seconds_(kDraftGuess),
      spread_(kFirstSpread) {
  blocks_.reserve(static_cast<std::size_t>(max_rows));
  refresh();
}

void StepCosts::pause() { scale_.variance += kPauseDrift; }

bool StepCosts::move_behind(std::int32_t length) {
  if (first_scales_.count == 0) length_ = length;
  const auto [shorter, longer] = std::minmax(length, length_);
  if (longer <= 2 * shorter + kSameCosts) return false;
  *this = StepCosts(max_rows_);
  length_ = length;
  return true;
}

void StepCosts::add_target(std::int32_t rows, double seconds) {
  Estimate& shape = shape_[rows];
  if (runs_[rows] == 0) shape = {std::log(curve_[rows]), kUnknown};
  ++runs_[rows];
  add(shape, seconds);
  relative_[rows] = std::exp(shape.mean);
  refresh();
}

void StepCosts::add_draft(double seconds) {
  if (first_scales_.count > 0) add(draft_, seconds);  // there is no scale before the first target step
}

bool StepCosts::Firsts::add(double value) {
  if (full()) return false;
  values[count++] = value;
  std::sort(values.begin(), values.begin() + count);
  return true;
}

void StepCosts::add(Estimate& shape, double seconds) {
  update(shape, seconds);
  seconds_ = std::exp(scale_.mean);
  draft_seconds_ = std::exp(scale_.mean + draft_.mean);
}

void StepCosts::update(Estimate& shape, double seconds) {
  const double measured = std::log(std::max(seconds, kShortest));
  const bool draft = &shape == &draft_;
  if (!draft && first_scales_.add(measured - shape.mean)) {
    scale_ = {first_scales_.middle(), spread_ * spread_};
  }
  if (draft && first_drafts_.add(measured - scale_.mean)) {
    draft_.mean = first_drafts_.middle();
    if (first_drafts_.full()) draft_.variance = spread_ * spread_;
    return;
  }
  scale_.variance += kScaleDrift;
  draft_.variance += kShapeDrift;
  for (Estimate& other : shape_) other.variance += kShapeDrift;

  const double error = measured - scale_.mean - shape.mean;
  const double known = scale_.variance + shape.variance;
  // Where little is known a large error is no surprise; beyond that the tails are heavy.
  const double expected = std::sqrt(known + spread_ * spread_);
  const double excess = std::max(std::abs(error) / (kOutlier * expected), 1.0);
  const double noise = spread_ * spread_ * excess * excess;
  const double gain = error / excess / (known + noise);
  const double scale_gain = scale_.variance / (known + noise);
  const double shape_gain = shape.variance / (known + noise);
  scale_.mean += scale_.variance * gain;
  shape.mean += shape.variance * gain;
  scale_.variance *= 1 - scale_gain;
  shape.variance *= 1 - shape_gain;

  if (shape.variance < kOffLine) {
    const double deviation = std::min(1.25 * std::abs(error), kOutlier * spread_);
    spread_ = std::max(spread_ + kSpreadRate * (deviation - spread_), kLeastSpread);
  }
}

void StepCosts::refresh() {
  // A line through the widths that were run, by least squares in units of the scale, with the
  // guess as a prior of its slope.
  double weights = 0, rows = 0, values = 0;
  for (std::int32_t w = 1; w <= max_rows_; ++w) {
    if (runs_[w] == 0) continue;
    const double weight = 1 / (shape_[w].variance + kOffLine);
    weights += weight;
    rows += weight * w;
    values += weight * relative_[w];
  }
  if (weights == 0) {
    for (std::int32_t w = 1; w <= max_rows_; ++w) curve_[w] = 1 + kSlopeGuess * (w - 1);
    return;
  }
  const double row = rows / weights;
  const double value = values / weights;
  double spread = 0, product = 0;
  for (std::int32_t w = 1; w <= max_rows_; ++w) {
    if (runs_[w] == 0) continue;
    const double weight = 1 / (shape_[w].variance + kOffLine);
    spread += weight * (w - row) * (w - row);
    product += weight * (w - row) * (relative_[w] - value);
  }
  const double prior = kSlopeWeight / (kUnknown + kOffLine);
  const double slope =
      std::max((product + prior * kSlopeGuess * value) / (spread + prior), 0.0);
  const auto line = [&](std::int32_t w) {
    return std::max(value + slope * (w - row), 0.2 * value);
  };

  // Each width by itself, the less is known of it the nearer to the line; then made
  // non-decreasing by pooling neighbours that are not.
  blocks_.clear();
  for (std::int32_t w = 1; w <= max_rows_; ++w) {
    if (runs_[w] == 0) continue;
    const double variance = shape_[w].variance;
    const double own = kOffLine / (kOffLine + variance);
    Block block{w, w, line(w) + own * (relative_[w] - line(w)), 1 / variance};
    while (!blocks_.empty() && blocks_.back().value > block.value) {
      const Block& before = blocks_.back();
      const double weight = before.weight + block.weight;
      block = {before.first, block.last,
               (before.value * before.weight + block.value * block.weight) / weight, weight};
      blocks_.pop_back();
    }
    blocks_.push_back(block);
  }
  const Block& first = blocks_.front();
  for (std::int32_t w = 1; w < first.first; ++w) {
    curve_[w] = std::max(first.value - slope * (first.first - w), 0.2 * first.value);
  }
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    const Block& block = blocks_[i];
    for (std::int32_t w = block.first; w <= block.last; ++w) curve_[w] = block.value;
    if (i + 1 == blocks_.size()) break;
    const Block& next = blocks_[i + 1];
    for (std::int32_t w = block.last + 1; w < next.first; ++w) {
      const double share = static_cast<double>(w - block.last) / (next.first - block.last);
      curve_[w] = block.value + share * (next.value - block.value);
    }
  }
  const Block& last = blocks_.back();
  for (std::int32_t w = last.last + 1; w <= max_rows_; ++w) {
    curve_[w] = last.value + slope * (w - last.last);
  }
}

}  // namespace specdec
