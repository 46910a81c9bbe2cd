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

void KvMemory::check() const {
  if (layers < 0 || kv_heads < 1 || head_dim < 1 || capacity < 2) {
    throw Error(ErrorCode::invalid_input, "a KV cache needs positive sizes and a capacity of 2");
  }
}

void KvMemory::move(std::uint8_t* keys, std::uint8_t* values, std::int32_t from,
                    std::int32_t to) const {
  const std::size_t element = element_bytes();
  const std::size_t column = element * static_cast<std::size_t>(head_dim);
  const std::size_t head = column * static_cast<std::size_t>(columns());
  // Where an element of a column lies, and how far apart the elements are.
  const auto place = [&](std::int32_t i) {
    return halves ? i / kTile * kTile * column + i % kTile * element : i * column;
  };
  const std::size_t stride = halves ? kTile * element : element;
  for (std::int32_t i = 0; i < kv_heads; ++i, keys += head, values += head) {
    std::copy_n(values + from * column, column, values + to * column);
    for (std::int32_t d = 0; d < head_dim; ++d) {
      std::copy_n(keys + place(from) + d * stride, element, keys + place(to) + d * stride);
    }
  }
}

KvLayers::KvLayers(const KvMemory& shape, std::int32_t sequences) {
  shape.check();
  constexpr std::size_t kLine = 64;
  const std::size_t bytes = shape.bytes() * static_cast<std::size_t>(sequences);
  part_bytes_ = (bytes + kLine - 1) / kLine * kLine;
  memory_ = AlignedBuffer<std::uint8_t>(2 * static_cast<std::size_t>(shape.layers) * part_bytes_);
}

InPlaceKvCache::InPlaceKvCache(const Shape& shape)
    : KvCache(shape.capacity), shape_(shape), memory_(shape, 1) {}

void InPlaceKvCache::begin(std::int32_t width) { require_room(width); }

void InPlaceKvCache::commit(std::int32_t columns) { length_ += columns; }

void InPlaceKvCache::move(std::int32_t from, std::int32_t to) {
  if (from == to) return;
  for (std::int32_t layer = 0; layer < shape_.layers; ++layer) {
    shape_.move(memory_.keys(layer), memory_.values(layer), from, to);
  }
}

}  // namespace specdec
