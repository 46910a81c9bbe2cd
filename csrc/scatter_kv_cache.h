#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "aligned_buffer.h"
#include "kv_cache.h"

namespace specdec {

// For graphs that take the past as an input and give the new columns apart from it, in the same
// encoding: committing copies the elements as they are, whatever they stand for. Only columns that
// are committed are ever written, so the past is, byte for byte, as if what was rejected had never
// been drafted.
class ScatterKvCache final : public KvCache {
 public:
  struct Shape {
    std::int32_t layers, kv_heads, head_dim, past;
    std::int32_t element_bytes;  // 1 or 2
  };
  // Memory for so many bytes of the past, where it must be of a kind: a device may read some in
  // place that it would have to copy elsewhere.
  using Allocate = std::function<std::shared_ptr<std::uint8_t>(std::size_t bytes)>;

  // For steps of at most max_width new columns.
  ScatterKvCache(const Shape& shape, std::int32_t max_width, const Allocate& allocate_past = {});

  // Needs room for the tokens of a step, not for its padding.
  void begin(std::int32_t tokens) override;

  // To be called when the graph has run: its first new column belongs to `position`, and there are
  // `width` of them, as its new keys' rows are that long. Nothing can be committed before.
  void ran(std::int32_t position, std::int32_t width);

  // Throws Error(invalid_input) where the step that ran has no such columns.
  void commit(std::int32_t columns) override;

  // Writes column 0, of keys and values [layers, kv_heads, head_dim], for models whose texts all
  // begin with the same token. A step at position 0 then gives the columns from 1 on.
  void set_first_column(const std::uint8_t* keys, const std::uint8_t* values);

  const Shape& shape() const { return shape_; }

  // What the graph reads: keys [kv_heads, head_dim, past], values [kv_heads, past, head_dim].
  std::uint8_t* past_keys(std::int32_t layer) { return past_keys_[layer].get(); }
  std::uint8_t* past_values(std::int32_t layer) { return past_values_[layer].get(); }
  // What it writes, at width W: keys [kv_heads, head_dim, W], values [kv_heads, W, head_dim].
  std::uint8_t* new_keys(std::int32_t layer) { return new_keys_[layer].data(); }
  std::uint8_t* new_values(std::int32_t layer) { return new_values_[layer].data(); }

 private:
  void copy_columns(std::int32_t from, std::int32_t to, std::int32_t count);

  Shape shape_;
  std::vector<std::shared_ptr<std::uint8_t>> past_keys_;
  std::vector<std::shared_ptr<std::uint8_t>> past_values_;
  std::vector<AlignedBuffer<std::uint8_t>> new_keys_;
  std::vector<AlignedBuffer<std::uint8_t>> new_values_;
  std::int32_t begun_length_ = 0;  // where the step was begun,
  std::int32_t begun_end_ = 0;     // and what the length may become by it
  std::int32_t position_ = 0;      // of the first new column
  std::int32_t width_ = 0;         // of the step that ran; 0: none did
};

}  // namespace specdec
