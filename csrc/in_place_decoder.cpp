#include "in_place_decoder.h"

#include <algorithm>
#include <utility>

#include "error.h"

namespace specdec {
namespace {

DecoderOptions checked(DecoderOptions o, const InPlaceDecoder::Padding& padding) {
  // With more padding than one column the last tokens of the context could not be reached.
  if (padding.min_width < 1 || padding.min_width > 2 || o.max_width < padding.min_width) {
    throw Error(ErrorCode::invalid_input,
                "a decoder needs a min_width of 1 or 2, and max_width >= min_width");
  }
  if (o.max_logit_rows < padding.min_width) {
    throw Error(ErrorCode::invalid_input,
                "a decoder needs max_logit_rows >= min_width: a padded step has a row for each");
  }
  o.least_logit_rows = 1;
  return o;
}

}  // namespace

InPlaceDecoder::InPlaceDecoder(DecoderOptions options, const Padding& padding,
                               const InPlaceKvCache::Shape& cache, const Graph& graph, Run run)
    : Decoder(checked(std::move(options), padding), std::move(run)),
      padding_(padding),
      cache_(cache),
      graph_(graph) {
  if (graph.hidden_size < 0) {
    throw Error(ErrorCode::invalid_input, "a decoder's hidden size is at least 1, or 0 for none");
  }
  const DecoderOptions& o = this->options();
  tokens_ = AlignedBuffer<std::int64_t>(o.max_width);
  seqlens_k_ = AlignedBuffer<std::int32_t>(1);
  total_length_ = AlignedBuffer<std::int32_t>(1);
  first_logit_row_ = AlignedBuffer<std::int64_t>(1);
  logits_ = AlignedBuffer<float>(static_cast<std::size_t>(o.max_logit_rows) * o.head_size);
  best_only_ = AlignedBuffer<std::int64_t>(1);
  best_ = AlignedBuffer<std::int32_t>(static_cast<std::size_t>(o.max_logit_rows));
  rows_ = AlignedBuffer<std::int32_t>(4 * static_cast<std::size_t>(o.max_width));
  hidden_rows_ = AlignedBuffer<float>(static_cast<std::size_t>(o.max_width) * graph.hidden_size);
}

const float* InPlaceDecoder::hidden(std::int32_t position) const {
  const std::int32_t end = std::min(hidden_end_, cache_.length());
  if (hidden_size() < 1 || position < hidden_begin_ || position >= end) return nullptr;
  return hidden_rows_.data() + static_cast<std::size_t>(position - hidden_begin_) * hidden_size();
}

void InPlaceDecoder::move_row(std::int32_t from, std::int32_t to) {
  if (!takes_trees()) Decoder::move_row(from, to);
  if (to < 0 || to > from || from >= step_tokens_) {
    throw Error(ErrorCode::invalid_input, "a row takes the place of one before it in its step");
  }
  cache_.move(cache_.length() + from, cache_.length() + to);
  const auto size = static_cast<std::size_t>(hidden_size());
  if (from != to) std::copy_n(&hidden_rows_.data()[from * size], size, &hidden_rows_[to * size]);
}

void InPlaceDecoder::place_rows(std::int32_t n, std::int32_t width, const std::int32_t* parents) {
  std::int32_t* sequence = rows_.data();
  std::int32_t* committed = sequence + width;
  std::int32_t* column = committed + width;
  std::int32_t* parent = column + width;
  for (std::int32_t i = 0; i < width; ++i) {
    sequence[i] = 0;
    committed[i] = cache_.length();
    column[i] = cache_.length() + i;
    parent[i] = parents != nullptr && i < n ? parents[i] : i - 1;
  }
}

LogitRows InPlaceDecoder::step(const std::int32_t* tokens, std::int32_t n, std::int32_t logit_rows,
                               Wanted wanted, const std::int32_t* parents) {
  const std::int32_t tile = padding_.row_tile;
  std::int32_t width = std::max(n, padding_.min_width);
  if (tile > 1 && width > tile && width % tile == 1) ++width;
  const std::int32_t first = n - logit_rows;
  if (width > options().max_width || width - first > options().max_logit_rows) {
    refuse(n, logit_rows);
  }
  cache_.begin(width);
  std::copy_n(tokens, n, tokens_.data());
  for (std::int32_t i = n; i < width; ++i) tokens_[i] = tokens[n - 1];  // never looked at
  const std::int32_t begin = cache_.length();
  const std::int32_t total = begin + width;
  seqlens_k_[0] = total - 1;
  total_length_[0] = total;
  first_logit_row_[0] = first;
  const bool best_only = graph_.gives_best && wanted == Wanted::best;
  best_only_[0] = best_only ? 1 : 0;
  place_rows(n, width, parents);
  step_tokens_ = n;
  hidden_end_ = hidden_begin_ = begin;  // a run that fails leaves rows of no use
  run(width, first);
  hidden_end_ = begin + n;
  if (best_only) return {nullptr, best_.data(), logit_rows, options().head_size, head_ids()};
  return {logits_.data(), nullptr, logit_rows, options().head_size, head_ids()};
}

}  // namespace specdec
