#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "aligned_buffer.h"
#include "kv_cache.h"

namespace specdec {

struct LogitRows {
  float* data;           // [rows, columns], valid until the next forward()
  std::int32_t rows;
  std::int32_t columns;  // size of the head

  float* row(std::int32_t i) const {
    return data + static_cast<std::size_t>(i) * static_cast<std::size_t>(columns);
  }
};

struct DecoderOptions {
  std::int32_t vocabulary = 0;  // ids that tokens are taken from
  std::int32_t head_size = 0;   // logits per row
  std::vector<std::int32_t> head_ids;  // id of each logit, ascending; empty: logit i is id i
  std::int32_t min_width = 1;   // 1, or 2: narrower steps are padded, so that rows do not depend on width
  std::int32_t row_tile = 0;    // a wider step is padded too where it would leave a last tile of one row
  std::int32_t max_width = 0;   // widest step
  std::int32_t max_logit_rows = 0;
};

// One model with one KV cache: runs steps on buffers that it owns and a session is bound to.
class Decoder {
 public:
  // Runs the model on the first `width` tokens, computing logits from row `first_logit_row` on.
  // The seam to the inference runtime: everything else passes through the buffers below.
  using Run = std::function<void(std::int32_t width, std::int32_t first_logit_row)>;

  Decoder(DecoderOptions options, const InPlaceKvCache::Shape& cache, Run run);

  // Runs tokens[n] at positions cache().length()...; gives logits of the last `logit_rows` of
  // them. Commits nothing. Throws Error(context_full) without room.
  LogitRows forward(const std::int32_t* tokens, std::int32_t n, std::int32_t logit_rows);

  // Runs and commits tokens[n], whose logits nobody needs, in steps of at most max_width; stops
  // early, between steps, when `stop` says so.
  void prefill(const std::int32_t* tokens, std::int32_t n, const std::function<bool()>& stop);

  InPlaceKvCache& cache() { return cache_; }
  const DecoderOptions& options() const { return options_; }
  const std::int32_t* head_ids() const {
    return options_.head_ids.empty() ? nullptr : options_.head_ids.data();
  }
  double run_seconds() const { return run_seconds_; }  // inside Run, since construction
  std::int64_t runs() const { return runs_; }

  // Buffers that sessions are bound to.
  AlignedBuffer<std::int64_t>& tokens() { return tokens_; }          // [max_width]
  AlignedBuffer<std::int32_t>& seqlens_k() { return seqlens_k_; }    // [1] total length - 1
  AlignedBuffer<std::int32_t>& total_length() { return total_length_; }  // scalar
  AlignedBuffer<std::int64_t>& first_logit_row() { return first_logit_row_; }  // [1]
  AlignedBuffer<float>& logits() { return logits_; }  // [max_logit_rows, head_size]

 private:
  DecoderOptions options_;
  InPlaceKvCache cache_;
  Run run_;
  AlignedBuffer<std::int64_t> tokens_;
  AlignedBuffer<std::int32_t> seqlens_k_;
  AlignedBuffer<std::int32_t> total_length_;
  AlignedBuffer<std::int64_t> first_logit_row_;
  AlignedBuffer<float> logits_;
  double run_seconds_ = 0;
  std::int64_t runs_ = 0;
};

}  // namespace specdec
