#include "batch_kv.h"

#include "error.h"

namespace specdec {
namespace {

std::int32_t one_at_least(std::int32_t sequences) {
  if (sequences < 1) throw Error(ErrorCode::invalid_input, "a batch needs one sequence at least");
  return sequences;
}

}  // namespace

BatchKv::BatchKv(const InPlaceKvCache::Shape& shape, std::int32_t sequences)
    : shape_(shape), sequences_(one_at_least(sequences)), memory_(shape, sequences) {}

void BatchKv::move(std::int32_t sequence, std::int32_t from, std::int32_t to) {
  if (from == to) return;
  const std::size_t first = shape_.bytes() * static_cast<std::size_t>(sequence);
  for (std::int32_t layer = 0; layer < shape_.layers; ++layer) {
    shape_.move(memory_.keys(layer) + first, memory_.values(layer) + first, from, to);
  }
}

}  // namespace specdec
