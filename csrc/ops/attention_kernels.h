#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"
#include "../kv_cache.h"

namespace specdec::ops {

// A row's sums are taken by chunks of the columns it sees, in logical order: of each chunk the
// greatest score, the sum of exp(score - greatest) and the values weighted by it. Chunks are then
// merged in order (Milakov and Gimelshein 1805.02867, algorithm 3). Where a chunk ends depends on
// the logical index alone, so a row comes out the same however chunks are spread over threads.
constexpr std::int32_t kAttentionChunk = 128;
constexpr std::int32_t kKeyTile = KvMemory::kTile;  // columns whose keys lie together
constexpr std::int32_t kAttentionItems = 32;  // heads of rows that are worked on together
constexpr std::int32_t kLargestHeadDim = 256;

// One query head of one row.
struct AttentionItem {
  const float* query = nullptr;  // [head_dim], turned and scaled
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

  // out = x rounded to the nearest halves (IEEE 754), ties to even, no further from zero than the
  // greatest of them; x, out [n].
  void (*halve)(const float* x, std::int32_t n, std::uint16_t* out);

  // Sums of one chunk. key: halves [capacity / kKeyTile, head_dim, kKeyTile] of one sequence and head,
  // value: halves [capacity, head_dim]; n items, at most kAttentionItems, that all see a column in the
  // chunk at least.
  // next: a tile of keys that is likely to be read next, to be brought near; may be null.
  void (*sum_chunk)(const std::uint16_t* key, const std::uint16_t* value, std::int32_t head_dim,
                    std::int32_t chunk, const AttentionItem* items, std::int32_t n,
                    const AttentionSum* sums, const std::uint16_t* next);

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
