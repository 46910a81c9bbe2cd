#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"

namespace specdec::ops {

// A row's sums are taken by chunks of the columns it sees, in logical order: of each chunk the
// greatest score, the sum of exp(score - greatest) and the values weighted by it. Chunks are then
// merged in order (Milakov and Gimelshein 1805.02867, algorithm 3). Where a chunk ends depends on
// the logical index alone, so a row comes out the same however chunks are spread over threads.
constexpr std::int32_t kAttentionChunk = 128;
constexpr std::int32_t kAttentionItems = 32;  // heads of rows that are worked on together
constexpr std::int32_t kLargestHeadDim = 256;

// One query head of one row.
struct AttentionItem {
  const float* query = nullptr;  // [head_dim, and zeros up to a multiple of 16], turned and scaled
  std::int32_t visible = 0;      // as in PlannedRow
  std::int32_t contiguous = 0;
  const std::int32_t* tail = nullptr;
};

// What was summed over some chunks of an item.
struct AttentionSum {
  float* greatest = nullptr;  // scalar
  float* total = nullptr;     // scalar: of exp(score - greatest)
  float* mixed = nullptr;     // [head_dim]: of exp(score - greatest) * value
};

// The loops, for one instruction set. All give the same bits.
struct AttentionKernels {
  // out = scale * (the halves of x turned by the position's angles); x, out [head_dim], cosine and
  // sine [head_dim / 2].
  void (*rotate)(const float* x, const float* cosine, const float* sine, std::int32_t head_dim,
                 float scale, float* out);

  // Sums of one chunk. key, value: [capacity, head_dim] of one sequence and head; n items, at most
  // kAttentionItems, that all see a column in the chunk at least.
  void (*sum_chunk)(const float* key, const float* value, std::int32_t head_dim,
                    std::int32_t chunk, const AttentionItem* items, std::int32_t n,
                    const AttentionSum* sums);

  // into = the sum of both, where `next` is of the columns that follow.
  void (*merge)(const AttentionSum& into, const AttentionSum& next, std::int32_t head_dim);

  // mixed /= total.
  void (*finish)(const AttentionSum& sum, std::int32_t head_dim);
};

AttentionKernels attention_kernels(Isa isa);  // for an instruction set that the CPU has

AttentionKernels attention_plain();
AttentionKernels attention_avx2();
AttentionKernels attention_avx512();
AttentionKernels attention_neon();

}  // namespace specdec::ops
