#include "batch_kv.h"

#include <algorithm>

#include "error.h"

namespace specdec {

BatchKv::BatchKv(const InPlaceKvCache::Shape& shape, std::int32_t sequences)
    : shape_(shape), sequences_(sequences) {
  if (shape.layers < 0 || shape.kv_heads < 1 || shape.head_dim < 1 || shape.capacity < 2 ||
      sequences < 1) {
    throw Error(ErrorCode::invalid_input,
                "the K/V of a batch need positive sizes and a capacity of 2");
  }
  const std::size_t size = static_cast<std::size_t>(sequences) * shape.kv_heads * shape.capacity *
                           static_cast<std::size_t>(shape.head_dim);
  for (std::int32_t layer = 0; layer < shape.layers; ++layer) {
    keys_.emplace_back(size);
    values_.emplace_back(size);
  }
}

void BatchKv::move(std::int32_t sequence, std::int32_t from, std::int32_t to) {
  if (from == to) return;
  const auto dim = static_cast<std::size_t>(shape_.head_dim);
  const std::size_t head = dim * static_cast<std::size_t>(shape_.capacity);
  const std::size_t first = head * static_cast<std::size_t>(shape_.kv_heads) *
                            static_cast<std::size_t>(sequence);
  for (std::int32_t layer = 0; layer < shape_.layers; ++layer) {
    for (float* all : {keys(layer) + first, values(layer) + first}) {
      for (std::int32_t i = 0; i < shape_.kv_heads; ++i) {
        std::copy_n(all + i * head + from * dim, dim, all + i * head + to * dim);
      }
    }
  }
}

}  // namespace specdec
