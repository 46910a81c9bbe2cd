#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "aligned_buffer.h"
#include "decoder.h"
#include "scatter_kv_cache.h"
#include "step_mask.h"

namespace specdec {

// What position 0 holds in a model whose texts all begin with the same token. That token's
// activations may be thousands of times those of any other, which no integer encoding of the graph
// could hold as well: so it is computed once, elsewhere, and never by the graph.
struct Sink {
  std::int32_t token = 0;
  std::vector<std::uint8_t> keys;    // [layers, kv_heads, head_dim], elements as in the cache
  std::vector<std::uint8_t> values;  // the same shape
  std::vector<float> logits;         // [head_size], of the token that follows
};

struct FixedOptions {
  std::vector<std::int32_t> widths;  // tokens that a step may have, ascending; others are padded
  std::int32_t hidden = 0;
  StepMask::Values mask{};
  // Logits are (q - zero_point) * scale, or halves as they are.
  float logits_scale = 1;
  std::int32_t logits_zero_point = 0;
  bool logits_are_halves = false;
  bool has_best = false;  // the graph can give each row's argmax in place of its logits
  std::optional<Sink> sink;
};

// Memory that others keep, and this shares: a file that is mapped, say.
struct FixedTables {
  std::shared_ptr<const std::uint16_t> embedding;  // [vocabulary, hidden]
  std::shared_ptr<const std::uint16_t> rotary;  // [2, past + widest, head_dim / 2]: cosines, sines
};

// A model whose graphs have fixed shapes and 16-bit inputs and outputs, of which nothing is known
// here but how to fill them: a row of the embedding for each token, a row of the rotary table for
// each position, a mask, and the past.
class FixedDecoder final : public Decoder {
 public:
  // The `head` of its runs.
  enum Head : std::int32_t { kNone = 0, kLogits = 1, kBest = 2 };

  // Of `options`, max_width, max_logit_rows and first_token are set from the others.
  FixedDecoder(DecoderOptions options, FixedOptions fixed, const ScatterKvCache::Shape& cache,
               FixedTables tables, Run run, const ScatterKvCache::Allocate& allocate_past = {});

  ScatterKvCache& cache() override { return cache_; }
  const FixedOptions& fixed() const { return fixed_; }

  // Buffers that sessions are bound to. Those without an index serve all widths W, at their front.
  std::uint16_t* x() { return x_.data(); }              // [W, hidden]
  std::uint16_t* cosines() { return cosines_.data(); }  // [W, head_dim / 2]
  std::uint16_t* sines() { return sines_.data(); }      // the same
  std::uint16_t* mask(std::size_t index) { return masks_[index].data(); }  // [W, past + W]
  std::uint16_t* logits() { return logits_.data(); }    // [W, head_size]
  std::int32_t* best() { return best_.data(); }         // [W]

 private:
  LogitRows step(const std::int32_t* tokens, std::int32_t n, std::int32_t logit_rows,
                 Wanted wanted, const std::int32_t* parents) override;

  // Returns the width of the graph that ran.
  std::int32_t run_graph(const std::int32_t* tokens, std::int32_t n, std::int32_t position,
                         Head head);
  void read_logits(std::int32_t first, std::int32_t rows, float* out) const;
  void read_best(std::int32_t first, std::int32_t rows, std::int32_t* out) const;

  FixedOptions fixed_;
  FixedTables tables_;
  ScatterKvCache cache_;
  std::vector<StepMask> masks_;  // one for each width
  AlignedBuffer<std::uint16_t> x_;
  AlignedBuffer<std::uint16_t> cosines_;
  AlignedBuffer<std::uint16_t> sines_;
  AlignedBuffer<std::uint16_t> logits_;
  AlignedBuffer<std::int32_t> best_;
  AlignedBuffer<float> rows_;             // [max_logit_rows, head_size], what logits_ stands for
  std::vector<std::int32_t> best_rows_;  // [max_logit_rows]
  std::int32_t sink_best_ = 0;
};

}  // namespace specdec
