#pragma once

#include <cstddef>
#include <cstdint>

namespace specdec::ops {

// A row's sums are taken by chunks of its columns, in logical order: a greatest score, a sum and a
// weighted sum of values for each chunk, which are then merged in order (Dao et al. 2205.14135,
// eq. for a concatenated softmax, section 3.1). Where a chunk ends depends on the logical index
// alone, so a row comes out the same however its chunks are spread over threads.
constexpr std::int32_t kAttentionChunk = 128;
constexpr std::int32_t kAttentionItems = 32;  // heads of rows that are worked on together
constexpr std::int32_t kLargestHeadDim = 256;

// One query head of one row.
struct AttentionItem {
  const float* query = nullptr;  // [head_dim rounded up to 16, zeros behind], rotated and scaled
  std::int32_t visible = 0;      // see PlannedRow
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
  // out = scale * (x with its halves turned by the position's angles). cosine, sine: [head_dim / 2].
  void (*rotate)(const float* x, const float* cosine, const float* sine, std::int32_t head_dim,
                 float scale, float* out);

  // Sums of one chunk. key, value: [capacity, head_dim] of one sequence and head; n items, at most
  // kAttentionItems, each with a column in the chunk at least.
  void (*sum_chunk)(const float* key, const float* value, std::int32_t head_dim,
                    std::int32_t chunk, const AttentionItem* items, std::int32_t n,
                    const AttentionSum* sums);

  // into = the sum of both, where `next` is of the columns that follow.
  void (*merge)(const AttentionSum& into, const AttentionSum& next, std::int32_t head_dim);

  // mixed /= total.
  void (*finish)(const AttentionSum& sum, std::int32_t head_dim);
};

namespace plain {
AttentionKernels attention_kernels();
}
namespace avx2 {
AttentionKernels attention_kernels();
}
namespace avx512 {
AttentionKernels attention_kernels();
}
namespace neon {
AttentionKernels attention_kernels();
}

}  // namespace specdec::ops
