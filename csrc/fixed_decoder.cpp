#include "fixed_decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <utility>

#include "error.h"
#include "kernels.h"

namespace specdec {
namespace {

[[noreturn]] void refuse_model(const std::string& what) {
  throw Error(ErrorCode::invalid_input, "a decoder of fixed shape needs " + what);
}

void check(const FixedOptions& f) {
  const bool ascending = std::adjacent_find(f.widths.begin(), f.widths.end(),
                                            std::greater_equal<>()) == f.widths.end();
  if (f.widths.empty() || f.widths.front() < 1 || !ascending) {
    refuse_model("widths that are positive and ascending");
  }
  if (f.hidden < 1) refuse_model("a hidden size of at least 1");
  if (f.mask.allowed == f.mask.blocked) {
    refuse_model("two different elements of the mask, one that allows and one that blocks");
  }
  if (!std::isfinite(f.logits_scale) || !(f.logits_scale > 0) || f.logits_zero_point < 0 ||
      f.logits_zero_point > 65535) {
    refuse_model("a positive scale of the logits and a zero point of 0 to 65535");
  }
}

DecoderOptions completed(DecoderOptions o, const FixedOptions& f) {
  check(f);
  o.max_width = f.widths.back();
  o.max_logit_rows = f.widths.back();
  if (f.sink) {
    if (f.sink->token < 0) refuse_model("a sink token of the vocabulary");
    o.first_token = f.sink->token;
  }
  return o;
}

}  // namespace

FixedDecoder::FixedDecoder(DecoderOptions options, FixedOptions fixed,
                           const ScatterKvCache::Shape& cache, FixedTables tables, Run run,
                           const ScatterKvCache::Allocate& allocate_past)
    : Decoder(completed(std::move(options), fixed), std::move(run)),
      fixed_(std::move(fixed)),
      tables_(std::move(tables)),
      cache_(cache, fixed_.widths.back(), allocate_past) {
  if (cache.head_dim % 2 != 0) refuse_model("an even head_dim");
  const std::size_t widest = fixed_.widths.back();
  const std::size_t head_size = this->options().head_size;
  for (const std::int32_t width : fixed_.widths) {
    masks_.emplace_back(width, cache.past, fixed_.mask);
  }
  x_ = AlignedBuffer<std::uint16_t>(widest * fixed_.hidden);
  cosines_ = AlignedBuffer<std::uint16_t>(widest * cache.head_dim / 2);
  sines_ = AlignedBuffer<std::uint16_t>(widest * cache.head_dim / 2);
  logits_ = AlignedBuffer<std::uint16_t>(widest * head_size);
  best_ = AlignedBuffer<std::int32_t>(widest);
  rows_ = AlignedBuffer<float>(widest * head_size);
  best_rows_.resize(widest);
  if (fixed_.sink) {
    const Sink& sink = *fixed_.sink;
    const std::size_t bytes = static_cast<std::size_t>(cache.layers) * cache.kv_heads *
                              cache.head_dim * cache.element_bytes;
    if (sink.keys.size() != bytes || sink.values.size() != bytes ||
        sink.logits.size() != head_size) {
      refuse_model("a sink with keys and values [layers, kv_heads, head_dim] of the cache's "
                   "elements, and logits [head size]");
    }
    cache_.set_first_column(sink.keys.data(), sink.values.data());
    sink_best_ = kernels::argmax(sink.logits.data(), static_cast<std::int32_t>(head_size));
  }
}

LogitRows FixedDecoder::step(const std::int32_t* tokens, std::int32_t n, std::int32_t logit_rows,
                             Wanted wanted, const std::int32_t*) {
  cache_.begin(n);
  const std::int32_t position = cache_.length();
  // The sink's token is never run.
  const std::int32_t known = fixed_.sink && position == 0 ? 1 : 0;
  if (known == 1 && tokens[0] != fixed_.sink->token) {
    throw Error(ErrorCode::invalid_input, "a text of this model must begin with token " +
                                              std::to_string(fixed_.sink->token));
  }
  const bool give_best = wanted == Wanted::best && fixed_.has_best;
  const Head head = logit_rows == 0 ? kNone : give_best ? kBest : kLogits;
  std::int32_t width = fixed_.widths.front();
  if (n > known) width = run_graph(tokens + known, n - known, position + known, head);
  cache_.ran(position + known, width);

  const std::int32_t columns = options().head_size;
  const std::int32_t from_sink = logit_rows == n ? known : 0;
  const std::int32_t first = n - logit_rows + from_sink - known;  // of the graph's rows
  const std::int32_t rows = logit_rows - from_sink;
  if (give_best) {
    if (from_sink == 1) best_rows_[0] = sink_best_;
    read_best(first, rows, best_rows_.data() + from_sink);
    return {nullptr, best_rows_.data(), logit_rows, columns, head_ids()};
  }
  // A copy, as whoever gets it may change it.
  if (from_sink == 1) std::copy_n(fixed_.sink->logits.data(), columns, rows_.data());
  read_logits(first, rows, rows_.data() + static_cast<std::size_t>(from_sink) * columns);
  return {rows_.data(), nullptr, logit_rows, columns, head_ids()};
}

std::int32_t FixedDecoder::run_graph(const std::int32_t* tokens, std::int32_t n,
                                     std::int32_t position, Head head) {
  const auto chosen = std::lower_bound(fixed_.widths.begin(), fixed_.widths.end(), n);
  const std::int32_t width = *chosen;
  const std::size_t hidden = fixed_.hidden;
  for (std::int32_t i = 0; i < width; ++i) {
    const std::size_t token = tokens[std::min(i, n - 1)];
    std::memcpy(x_.data() + i * hidden, tables_.embedding.get() + token * hidden,
                hidden * sizeof(std::uint16_t));
  }
  const std::size_t half = cache_.shape().head_dim / 2;
  const std::uint16_t* cosines = tables_.rotary.get() + position * half;
  const std::uint16_t* sines = cosines + (cache_.capacity() + fixed_.widths.back()) * half;
  std::memcpy(cosines_.data(), cosines, width * half * sizeof(std::uint16_t));
  std::memcpy(sines_.data(), sines, width * half * sizeof(std::uint16_t));
  masks_[chosen - fixed_.widths.begin()].show(position);
  run(width, head);
  return width;
}

void FixedDecoder::read_logits(std::int32_t first, std::int32_t rows, float* out) const {
  const std::int32_t columns = options().head_size;
  const std::uint16_t* in = logits_.data() + static_cast<std::size_t>(first) * columns;
  for (std::int32_t row = 0; row < rows; ++row, in += columns, out += columns) {
    if (fixed_.logits_are_halves) {
      kernels::widen_halves(in, columns, out);
    } else {
      kernels::dequantize(in, fixed_.logits_zero_point, fixed_.logits_scale, columns, out);
    }
  }
}

void FixedDecoder::read_best(std::int32_t first, std::int32_t rows, std::int32_t* out) const {
  for (std::int32_t row = 0; row < rows; ++row) {
    out[row] = best_.data()[first + row];
    if (out[row] < 0 || out[row] >= options().head_size) {
      throw Error(ErrorCode::model_run, "the model's best token is " + std::to_string(out[row]) +
                                            ", outside its head; its files may be damaged");
    }
  }
}

}  // namespace specdec
