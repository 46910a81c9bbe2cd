#include "attention_operands.h"

#include <cstring>
#include <limits>
#include <string>

#include "attention_kernels.h"

namespace specdec::ops {
namespace {

std::int32_t narrow(std::int64_t size, const char* what) {
  if (size > std::numeric_limits<std::int32_t>::max()) refuse(std::string(what) + " is too long");
  return static_cast<std::int32_t>(size);
}

}  // namespace

void require(const Shape& shape, const Shape& expected, const char* name) {
  if (shape != expected) {
    refuse(std::string(name) + " is " + shape.text() + ", not " + expected.text());
  }
}

void check_heads(std::int64_t heads, std::int64_t kv_heads) {
  if (kv_heads < 1 || heads < 1 || heads > 4096 || heads % kv_heads != 0) {
    refuse("heads is " + std::to_string(heads) + " and kv_heads " + std::to_string(kv_heads) +
           "; heads must be a positive multiple of kv_heads, at most 4096");
  }
}

void check_head_dim(std::int64_t head_dim) {
  if (head_dim < 8 || head_dim > kLargestHeadDim || head_dim % 8 != 0) {
    refuse("head_dim is " + std::to_string(head_dim) + "; it must be a multiple of 8, at most " +
           std::to_string(kLargestHeadDim));
  }
}

AttentionShape attention_shape(std::int64_t width, std::int64_t heads, std::int64_t kv_heads,
                               const Shape& past_key, const Shape& rows, const Shape& cosine,
                               const Shape& sine) {
  if (past_key.rank() != 4 || past_key[1] != kv_heads) {
    refuse("past_key is " + past_key.text() + ", not [sequences, " + std::to_string(kv_heads) +
           " K/V heads, capacity, head_dim]");
  }
  const std::int64_t head_dim = past_key[3];
  check_head_dim(head_dim);
  if (cosine.rank() != 2) refuse("cosine is " + cosine.text() + ", not [positions, head_dim / 2]");
  require(rows, {4, width}, "rows");
  require(cosine, {cosine[0], head_dim / 2}, "cosine");
  require(sine, cosine, "sine");
  AttentionShape shape;
  shape.rows = narrow(width * heads, "the step") / static_cast<std::int32_t>(heads);
  shape.heads = static_cast<std::int32_t>(heads);
  shape.kv_heads = static_cast<std::int32_t>(kv_heads);
  shape.head_dim = static_cast<std::int32_t>(head_dim);
  shape.sequences = narrow(past_key[0], "the list of sequences");
  shape.capacity = narrow(past_key[2], "the cache");
  if (shape.capacity % kKeyTile != 0) {
    refuse("the cache has room for " + std::to_string(shape.capacity) +
           " columns; it must be a multiple of " + std::to_string(kKeyTile));
  }
  shape.positions = narrow(cosine[0], "the rotary table");
  return shape;
}

std::uint16_t* take_over(const std::uint16_t* past, std::uint16_t* present, const Shape& cache) {
  if (past != present && present != nullptr) {
    std::int64_t size = 1;
    for (std::size_t i = 0; i < cache.rank(); ++i) size *= cache[i];
    std::memcpy(present, past, sizeof *past * static_cast<std::size_t>(size));
  }
  return present;
}

}  // namespace specdec::ops
