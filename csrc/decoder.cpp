#include "decoder.h"

#include <algorithm>
#include <functional>
#include <string>
#include <utility>

#include "clock.h"
#include "error.h"

namespace specdec {
namespace {

void check(const DecoderOptions& o) {
  if (o.vocabulary < 1 || o.head_size < 1 || o.head_size > o.vocabulary) {
    throw Error(ErrorCode::invalid_input, "a decoder needs 1 <= head size <= vocabulary");
  }
  // With more padding than one column the last tokens of the context could not be reached.
  if (o.min_width < 1 || o.min_width > 2 || o.max_width < o.min_width) {
    throw Error(ErrorCode::invalid_input,
                "a decoder needs a min_width of 1 or 2, and max_width >= min_width");
  }
  if (o.max_logit_rows < o.min_width) {
    throw Error(ErrorCode::invalid_input,
                "a decoder needs max_logit_rows >= min_width: a padded step has a row for each");
  }
  if (o.head_ids.empty()) {
    if (o.head_size != o.vocabulary) {
      throw Error(ErrorCode::invalid_input, "a trimmed head needs the id of each of its logits");
    }
    return;
  }
  const bool ascending = std::adjacent_find(o.head_ids.begin(), o.head_ids.end(),
                                            std::greater_equal<>()) == o.head_ids.end();
  if (static_cast<std::int32_t>(o.head_ids.size()) != o.head_size || !ascending ||
      o.head_ids.front() < 0 || o.head_ids.back() >= o.vocabulary) {
    throw Error(ErrorCode::invalid_input,
                "head ids must be ascending ids of the vocabulary, one for each logit");
  }
}

}  // namespace

Decoder::Decoder(DecoderOptions options, const InPlaceKvCache::Shape& cache, Run run)
    : options_(std::move(options)), cache_(cache), run_(std::move(run)) {
  check(options_);
  tokens_ = AlignedBuffer<std::int64_t>(options_.max_width);
  seqlens_k_ = AlignedBuffer<std::int32_t>(1);
  total_length_ = AlignedBuffer<std::int32_t>(1);
  first_logit_row_ = AlignedBuffer<std::int64_t>(1);
  logits_ = AlignedBuffer<float>(static_cast<std::size_t>(options_.max_logit_rows) *
                                 options_.head_size);
}

LogitRows Decoder::forward(const std::int32_t* tokens, std::int32_t n, std::int32_t logit_rows) {
  std::int32_t width = std::max(n, options_.min_width);
  if (options_.row_tile > 1 && width > options_.row_tile && width % options_.row_tile == 1) ++width;
  const std::int32_t first = n - logit_rows;
  if (n < 1 || width > options_.max_width || first < 0 ||
      width - first > options_.max_logit_rows) {
    throw Error(ErrorCode::invalid_input,
                "a step of " + std::to_string(n) + " tokens with " + std::to_string(logit_rows) +
                    " rows of logits is outside what this decoder was made for");
  }
  cache_.begin(width);
  // A target may have ids that its drafter lacks (padding of the vocabulary). Read as id 0 they
  // cost a bad draft, never a wrong text.
  for (std::int32_t i = 0; i < n; ++i) {
    tokens_[i] = tokens[i] < options_.vocabulary ? tokens[i] : 0;
  }
  for (std::int32_t i = n; i < width; ++i) tokens_[i] = tokens_[n - 1];  // never looked at
  const std::int32_t total = cache_.length() + width;
  seqlens_k_[0] = total - 1;
  total_length_[0] = total;
  first_logit_row_[0] = first;
  {
    Stopwatch watch(run_seconds_);
    run_(width, first);
  }
  ++runs_;
  return {logits_.data(), logit_rows, options_.head_size};
}

void Decoder::prefill(const std::int32_t* tokens, std::int32_t n,
                      const std::function<bool()>& stop) {
  while (n > 0 && !stop()) {
    // Padding must fit as well: the last column of the context is left to the step that follows.
    const std::int32_t count = std::min(n, options_.max_width);
    forward(tokens, count, 1);
    cache_.commit(count);
    tokens += count;
    n -= count;
  }
}

}  // namespace specdec
