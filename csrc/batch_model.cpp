#include "batch_model.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "clock.h"
#include "error.h"

namespace specdec {

std::vector<double> split_step(const StepCosts& costs, const std::vector<std::int32_t>& rows) {
  const std::int32_t width = std::accumulate(rows.begin(), rows.end(), 0);
  const double narrowest = costs.target(1);
  const double row = width > 1 ? (costs.target(width) - narrowest) / (width - 1) : 0;
  const double even = (narrowest - row) / static_cast<double>(rows.size());
  const double whole = narrowest + row * (width - 1);
  std::vector<double> shares;
  for (const std::int32_t own : rows) shares.push_back((even + row * own) / whole);
  return shares;
}

BatchModel::BatchModel(const Sizes& sizes, Decoder::Run run)
    : sizes_(sizes), run_(std::move(run)), costs_(std::max(sizes.max_width, 1)) {
  if (sizes.max_width < 1 || sizes.max_logit_rows < 1 || sizes.head_size < 1 ||
      sizes.hidden_size < 0 || (sizes.takes_features && sizes.hidden_size < 1)) {
    throw Error(ErrorCode::invalid_input, "the model of a batch needs positive sizes");
  }
  const auto width = static_cast<std::size_t>(sizes.max_width);
  const auto hidden = static_cast<std::size_t>(sizes.hidden_size);
  tokens_ = AlignedBuffer<std::int64_t>(width);
  first_logit_row_ = AlignedBuffer<std::int64_t>(1);
  best_only_ = AlignedBuffer<std::int64_t>(1);
  best_ = AlignedBuffer<std::int32_t>(static_cast<std::size_t>(sizes.max_logit_rows));
  rows_ = AlignedBuffer<std::int32_t>(4 * width);
  features_ = AlignedBuffer<float>(sizes.takes_features ? width * hidden : 0);
  hidden_ = AlignedBuffer<float>(width * hidden);
  logits_ = AlignedBuffer<float>(static_cast<std::size_t>(sizes.max_logit_rows) *
                                 static_cast<std::size_t>(sizes.head_size));
}

void BatchModel::run(StepPart* parts, std::int32_t count) {
  std::int32_t width = 0;
  std::int32_t logit_rows = 0;
  bool best_only = sizes_.gives_best;
  for (std::int32_t i = 0; i < count; ++i) {
    width += parts[i].n;
    logit_rows += parts[i].logit_rows;
    best_only = best_only && parts[i].wanted == Wanted::best;
  }
  if (width < 1 || !fits(width, logit_rows)) {
    throw Error(ErrorCode::invalid_input, "a step of a batch has more rows than its model takes");
  }
  std::int32_t without = 0;
  std::int32_t with = width - logit_rows;
  for (std::int32_t i = 0; i < count; ++i) {
    StepPart& part = parts[i];
    part.without_logits = without;
    part.with_logits = with;
    without += part.n - part.logit_rows;
    with += part.logit_rows;
    place(part, width);
  }
  first_ = width - std::max(logit_rows, 1);  // the graph gives at least one row
  first_logit_row_[0] = first_;
  best_only_[0] = best_only ? 1 : 0;
  double seconds = 0;
  {
    Stopwatch watch(seconds);
    run_(width, first_);
  }
  costs_.add_target(width, seconds);
  std::vector<std::int32_t> rows;
  for (std::int32_t i = 0; i < count; ++i) rows.push_back(parts[i].n);
  const std::vector<double> shares = split_step(costs_, rows);
  for (std::int32_t i = 0; i < count; ++i) {
    parts[i].share = shares[static_cast<std::size_t>(i)];
    parts[i].seconds = seconds * parts[i].share;
  }
}

LogitRows BatchModel::logits_of(const StepPart& part, const std::int32_t* head_ids) {
  const auto row = static_cast<std::size_t>(part.with_logits - first_);
  if (best_only_[0] != 0) {
    return {nullptr, best_.data() + row, part.logit_rows, sizes_.head_size, head_ids};
  }
  float* const logits = logits_.data() + row * static_cast<std::size_t>(sizes_.head_size);
  return {logits, nullptr, part.logit_rows, sizes_.head_size, head_ids};
}

void BatchModel::place(const StepPart& part, std::int32_t width) {
  std::int32_t* sequence = rows_.data();
  std::int32_t* committed = sequence + width;
  std::int32_t* column = committed + width;
  std::int32_t* parent = column + width;
  const auto hidden = static_cast<std::size_t>(sizes_.hidden_size);
  for (std::int32_t i = 0; i < part.n; ++i) {
    const std::int32_t row = part.row(i);
    const std::int32_t before = part.parents != nullptr ? part.parents[i] : i - 1;
    tokens_[row] = part.tokens[i];
    sequence[row] = part.sequence;
    committed[row] = part.length;
    column[row] = part.length + i;
    parent[row] = before < 0 ? -1 : part.row(before);
    if (sizes_.takes_features) {
      std::copy_n(part.features + i * hidden, hidden, &features_.data()[row * hidden]);
    }
  }
}

}  // namespace specdec
