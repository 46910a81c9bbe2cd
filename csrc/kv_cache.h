#pragma once

#include <cstddef>
#include <cstdint>

#include "aligned_buffer.h"

namespace specdec {

// The keys and values of a prefix of the sequence: what a Decoder and the engine see of it.
//
// A step of `width` tokens is begun, the model runs, and then the first n of the step's columns
// are committed; what is not committed is as if it had never been computed.
class KvCache {
 public:
  virtual ~KvCache() = default;

  std::int32_t length() const { return length_; }      // columns that are valid
  std::int32_t capacity() const { return capacity_; }  // columns there is room for
  std::int32_t room() const { return capacity_ - length_; }

  virtual void begin(std::int32_t width) = 0;    // throws Error(context_full) without room
  virtual void commit(std::int32_t columns) = 0;  // of the step begun last
  void truncate(std::int32_t length) {
    if (length < length_) length_ = length;
  }

 protected:
  explicit KvCache(std::int32_t capacity) : capacity_(capacity) {}
  void require_room(std::int32_t width) const;  // throws Error(context_full)
  std::int32_t length_ = 0;

 private:
  std::int32_t capacity_;
};

// The memory of keys and values that graphs write to themselves.
struct KvMemory {
  std::int32_t layers, kv_heads, head_dim;
  std::int32_t capacity;  // columns that may be used
  // Else floats [kv_heads, capacity, head_dim]. Halves have their keys in tiles, as csrc/ops wants
  // them: [kv_heads, columns / kTile, head_dim, kTile] and values [kv_heads, columns, head_dim].
  bool halves = false;

  static constexpr std::int32_t kTile = 32;

  std::int32_t columns() const {  // that there is memory for
    return halves ? (capacity + kTile - 1) / kTile * kTile : capacity;
  }
  std::size_t element_bytes() const { return halves ? 2 : 4; }
  std::size_t bytes() const {  // of a layer's keys, or of its values
    return element_bytes() * static_cast<std::size_t>(kv_heads) *
           static_cast<std::size_t>(columns()) * static_cast<std::size_t>(head_dim);
  }
  void check() const;  // throws Error(invalid_input) for sizes that are none

  // Copies column `from` of one layer to column `to`.
  void move(std::uint8_t* keys, std::uint8_t* values, std::int32_t from, std::int32_t to) const;
};

// The memory itself, [layers, 2, sequences, ...]: of each layer the keys, then the values. In one piece,
// so that a graph takes it as one tensor; columns that nobody wrote to cost no memory.
class KvLayers {
 public:
  KvLayers(const KvMemory& shape, std::int32_t sequences);  // check()ed

  std::uint8_t* data() { return memory_.data(); }
  // [sequences], each as in KvMemory
  std::uint8_t* keys(std::int32_t layer) { return part(2 * static_cast<std::size_t>(layer)); }
  std::uint8_t* values(std::int32_t layer) { return part(2 * static_cast<std::size_t>(layer) + 1); }

 private:
  std::uint8_t* part(std::size_t i) { return memory_.data() + i * part_bytes_; }

  std::size_t part_bytes_;  // of floats up to a whole line of the nearest cache; halves fill theirs
  AlignedBuffer<std::uint8_t> memory_;
};

// For graphs that write the new columns into the past's own memory at `length`: committing is
// counting, and a rejected column is overwritten by the next step.
class InPlaceKvCache final : public KvCache {
 public:
  using Shape = KvMemory;
  explicit InPlaceKvCache(const Shape& shape);

  void begin(std::int32_t width) override;
  void commit(std::int32_t columns) override;

  // Copies column `from` to column `to` in every layer; both are columns of the cache.
  void move(std::int32_t from, std::int32_t to);

  const Shape& shape() const { return shape_; }
  KvLayers& memory() { return memory_; }

 private:
  Shape shape_;
  KvLayers memory_;
};

}  // namespace specdec
