#pragma once

#include <cstdint>

#include "kv_cache.h"

namespace specdec {

// The keys and values of several sequences of one model.
class BatchKv {
 public:
  BatchKv(const InPlaceKvCache::Shape& shape, std::int32_t sequences);

  // Copies column `from` of a sequence to column `to` in every layer.
  void move(std::int32_t sequence, std::int32_t from, std::int32_t to);

  const InPlaceKvCache::Shape& shape() const { return shape_; }  // of one sequence
  std::int32_t sequences() const { return sequences_; }
  KvLayers& memory() { return memory_; }

 private:
  InPlaceKvCache::Shape shape_;
  std::int32_t sequences_;
  KvLayers memory_;
};

// One sequence's columns of a BatchKv: committing is counting.
class SequenceKvCache final : public KvCache {
 public:
  explicit SequenceKvCache(const BatchKv& kv) : KvCache(kv.shape().capacity) {}

  void begin(std::int32_t width) override { require_room(width); }
  void commit(std::int32_t columns) override { length_ += columns; }
};

}  // namespace specdec
