#include "kv_cache.h"

#include <algorithm>
#include <string>

#include "error.h"

namespace specdec {

void KvCache::require_room(std::int32_t width) const {
  if (width > room()) {
    throw Error(ErrorCode::context_full,
                "a step of " + std::to_string(width) + " tokens at position " +
                    std::to_string(length()) + " does not fit into a context of " +
                    std::to_string(capacity()));
  }
}

InPlaceKvCache::InPlaceKvCache(const Shape& shape) : KvCache(shape.capacity), shape_(shape) {
  if (shape.layers < 0 || shape.kv_heads < 1 || shape.head_dim < 1 || shape.capacity < 2) {
    throw Error(ErrorCode::invalid_input, "a KV cache needs positive sizes and a capacity of 2");
  }
  const auto size = static_cast<std::size_t>(shape.kv_heads) * shape.capacity * shape.head_dim;
  for (std::int32_t layer = 0; layer < shape.layers; ++layer) {
    keys_.emplace_back(size);
    values_.emplace_back(size);
  }
}

void InPlaceKvCache::begin(std::int32_t width) { require_room(width); }

void InPlaceKvCache::commit(std::int32_t columns) { length_ += columns; }

void InPlaceKvCache::move(std::int32_t from, std::int32_t to) {
  if (from == to) return;
  const auto dim = static_cast<std::size_t>(shape_.head_dim);
  const std::size_t head = dim * static_cast<std::size_t>(capacity());
  for (std::int32_t layer = 0; layer < shape_.layers; ++layer) {
    for (float* all : {keys(layer), values(layer)}) {
      for (std::int32_t i = 0; i < shape_.kv_heads; ++i) {
        std::copy_n(all + i * head + from * dim, dim, all + i * head + to * dim);
      }
    }
  }
}

}  // namespace specdec
