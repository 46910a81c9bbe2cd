#pragma once

#include <cstdint>

#include "attention_plan.h"
#include "op.h"

// What CachedAttention and DecoderLayers are given alike. All of these throw specdec::Error.

namespace specdec::ops {

void require(const Shape& shape, const Shape& expected, const char* name);

void check_heads(std::int64_t heads, std::int64_t kv_heads);

// Elements of a head.
void check_head_dim(std::int64_t head_dim);

// Of a step of so many rows, from the shapes of its operands; head_dim is that of past_key.
AttentionShape attention_shape(std::int64_t width, std::int64_t heads, std::int64_t kv_heads,
                               const Shape& past_key, const Shape& rows, const Shape& cosine,
                               const Shape& sine);

// The memory that a cache is read from and written to: that of the output `present`, into which the
// input's is copied where the two are not one.
std::uint16_t* take_over(const std::uint16_t* past, std::uint16_t* present, const Shape& cache);

}  // namespace specdec::ops
