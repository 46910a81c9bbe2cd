#include "scatter_kv_cache.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "error.h"

namespace specdec {
namespace {

// Copies the first `count` elements of every row, few of them: no call of memcpy would pay.
template <class Element>
void copy_rows(const std::uint8_t* from, std::size_t from_length, std::uint8_t* to,
               std::size_t to_length, std::size_t rows, std::int32_t count) {
  const auto* source = reinterpret_cast<const Element*>(from);
  auto* target = reinterpret_cast<Element*>(to);
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::int32_t i = 0; i < count; ++i) target[i] = source[i];
    source += from_length;
    target += to_length;
  }
}

// Zeroed: columns that were never written are multiplied by zero, which not every half survives.
std::shared_ptr<std::uint8_t> past_memory(std::size_t bytes,
                                          const ScatterKvCache::Allocate& allocate) {
  if (allocate) {
    auto memory = allocate(bytes);
    std::memset(memory.get(), 0, bytes);
    return memory;
  }
  const auto buffer = std::make_shared<AlignedBuffer<std::uint8_t>>(bytes);
  return {buffer, buffer->data()};
}

}  // namespace

ScatterKvCache::ScatterKvCache(const Shape& shape, std::int32_t max_width,
                               const Allocate& allocate_past)
    : KvCache(shape.past), shape_(shape) {
  if (shape.layers < 0 || shape.kv_heads < 1 || shape.head_dim < 1 || shape.past < 2 ||
      max_width < 1 || shape.element_bytes < 1 || shape.element_bytes > 2) {
    throw Error(ErrorCode::invalid_input,
                "a KV cache of fixed shape needs positive sizes, a past of 2 and elements of 1 or "
                "2 bytes");
  }
  const auto column = static_cast<std::size_t>(shape.kv_heads) * shape.head_dim *
                      shape.element_bytes;
  for (std::int32_t layer = 0; layer < shape.layers; ++layer) {
    past_keys_.push_back(past_memory(column * shape.past, allocate_past));
    past_values_.push_back(past_memory(column * shape.past, allocate_past));
    new_keys_.emplace_back(column * max_width);
    new_values_.emplace_back(column * max_width);
  }
}

void ScatterKvCache::begin(std::int32_t tokens) {
  width_ = 0;
  require_room(tokens);
  begun_length_ = length();
  begun_end_ = length() + tokens;
}

void ScatterKvCache::ran(std::int32_t position, std::int32_t width) {
  position_ = position;
  width_ = width;
}

void ScatterKvCache::commit(std::int32_t columns) {
  const std::int32_t end = length_ + columns;
  if (columns < 0 || width_ == 0 || length_ < begun_length_ || end > begun_end_) {
    throw Error(ErrorCode::invalid_input,
                "no step has run that gave the " + std::to_string(columns) +
                    " columns to commit at position " + std::to_string(length_));
  }
  const std::int32_t from = std::max(length_, position_);
  if (end > from) copy_columns(from - position_, from, end - from);
  length_ = end;
}

void ScatterKvCache::copy_columns(std::int32_t from, std::int32_t to, std::int32_t count) {
  const auto heads = static_cast<std::size_t>(shape_.kv_heads);
  const auto dim = static_cast<std::size_t>(shape_.head_dim);
  const auto past = static_cast<std::size_t>(shape_.past);
  const auto width = static_cast<std::size_t>(width_);
  const auto bytes = static_cast<std::size_t>(shape_.element_bytes);
  for (std::int32_t layer = 0; layer < shape_.layers; ++layer) {
    const std::uint8_t* source = new_keys(layer) + from * bytes;
    std::uint8_t* target = past_keys(layer) + to * bytes;
    const auto copy = bytes == 1 ? copy_rows<std::uint8_t> : copy_rows<std::uint16_t>;
    copy(source, width, target, past, heads * dim, count);
    for (std::size_t head = 0; head < heads; ++head) {
      std::memcpy(past_values(layer) + (head * past + to) * dim * bytes,
                  new_values(layer) + (head * width + from) * dim * bytes, count * dim * bytes);
    }
  }
}

void ScatterKvCache::set_first_column(const std::uint8_t* keys, const std::uint8_t* values) {
  const auto dim = static_cast<std::size_t>(shape_.head_dim);
  const auto past = static_cast<std::size_t>(shape_.past);
  const auto bytes = static_cast<std::size_t>(shape_.element_bytes);
  for (std::int32_t layer = 0; layer < shape_.layers; ++layer) {
    for (std::size_t row = 0; row < shape_.kv_heads * dim; ++row) {
      std::memcpy(past_keys(layer) + row * past * bytes, keys, bytes);
      keys += bytes;
    }
    for (std::int32_t head = 0; head < shape_.kv_heads; ++head) {
      std::memcpy(past_values(layer) + head * past * dim * bytes, values, dim * bytes);
      values += dim * bytes;
    }
  }
}

}  // namespace specdec
