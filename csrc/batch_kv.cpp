#include "batch_kv.h"

#include "error.h"

namespace specdec {

BatchKv::BatchKv(const InPlaceKvCache::Shape& shape, std::int32_t sequences)
    : shape_(shape), sequences_(sequences) {
  shape.check();
  if (sequences < 1) throw Error(ErrorCode::invalid_input, "a batch needs one sequence at least");
  const std::size_t bytes = shape.bytes() * static_cast<std::size_t>(sequences);
  for (std::int32_t layer = 0; layer < shape.layers; ++layer) {
    keys_.emplace_back(bytes);
    values_.emplace_back(bytes);
  }
}

void BatchKv::move(std::int32_t sequence, std::int32_t from, std::int32_t to) {
  if (from == to) return;
  const std::size_t first = shape_.bytes() * static_cast<std::size_t>(sequence);
  for (std::int32_t layer = 0; layer < shape_.layers; ++layer) {
    shape_.move(keys(layer) + first, values(layer) + first, from, to);
  }
}

}  // namespace specdec
