#pragma once

#include <cstdint>
#include <vector>

#include "aligned_buffer.h"
#include "kv_cache.h"

namespace specdec {

// The keys and values of several sequences of one model. Columns that nobody wrote to cost no
// memory.
class BatchKv {
 public:
  BatchKv(const InPlaceKvCache::Shape& shape, std::int32_t sequences);

  // Copies column `from` of a sequence to column `to` in every layer.
  void move(std::int32_t sequence, std::int32_t from, std::int32_t to);

  const InPlaceKvCache::Shape& shape() const { return shape_; }  // of one sequence
  std::int32_t sequences() const { return sequences_; }
  // [sequences], each as in KvMemory
  std::uint8_t* keys(std::int32_t layer) { return keys_[static_cast<std::size_t>(layer)].data(); }
  std::uint8_t* values(std::int32_t layer) { return values_[static_cast<std::size_t>(layer)].data(); }

 private:
  InPlaceKvCache::Shape shape_;
  std::int32_t sequences_;
  std::vector<AlignedBuffer<std::uint8_t>> keys_;
  std::vector<AlignedBuffer<std::uint8_t>> values_;
};

// One sequence's columns of a BatchKv: committing is counting.
class SequenceKvCache final : public KvCache {
 public:
  explicit SequenceKvCache(const BatchKv& kv) : KvCache(kv.shape().capacity) {}

  void begin(std::int32_t width) override { require_room(width); }
  void commit(std::int32_t columns) override { length_ += columns; }
};

}  // namespace specdec
