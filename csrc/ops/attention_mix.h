#pragma once

// Weighted sums of values: a part of attention_loops.h, which includes it.

#include "attention_halves.h"

namespace specdec::ops {
namespace {

// sum[r] += weights[r][i] * values[i][16 * kVectors], i ascending. A row of values is `stride` apart.
template <int kItems, int kVectors>
inline void mix(const std::uint16_t* values, std::int32_t stride, std::int32_t n,
                const float* const* weights, Floats (&sum)[kItems][kVectors]) {
  for (std::int32_t i = 0; i < n; ++i) {
    Floats value[kVectors];
    for (int v = 0; v < kVectors; ++v) value[v] = load(values + v * kLanes);
    for (int r = 0; r < kItems; ++r) {
      const Floats weight = all(weights[r][i]);
      for (int v = 0; v < kVectors; ++v) sum[r][v] = fma(weight, value[v], sum[r][v]);
    }
    values += stride;
  }
}

// Values of one head, 16 * kVectors elements of each from `offset` on, and a chunk's columns.
struct Values {
  const std::uint16_t* whole;  // [capacity, head_dim]
  std::int32_t head_dim;
  std::int32_t offset;
  std::int32_t begin, end;

  const std::uint16_t* at(std::int32_t column) const {
    return whole + static_cast<std::size_t>(column) * static_cast<std::size_t>(head_dim) + offset;
  }
};

// The weighted sums of kItems items.
template <int kItems, int kVectors>
SPECDEC_OPS_APART void mix_items(const Values& values, const AttentionItem* items,
                                 const float* scores, const AttentionSum* sums) {
  const std::int32_t begin = values.begin;
  std::int32_t shared = values.end;
  const float* weights[kItems];
  for (int r = 0; r < kItems; ++r) {
    shared = smaller_of(shared, items[r].contiguous);
    weights[r] = scores + r * kAttentionChunk;
  }
  shared = greater_of(shared, begin);
  Floats sum[kItems][kVectors];
  for (int r = 0; r < kItems; ++r) {
    for (int v = 0; v < kVectors; ++v) sum[r][v] = all(0.0f);
  }
  mix<kItems, kVectors>(values.at(begin), values.head_dim, shared - begin, weights, sum);
  for (int r = 0; r < kItems; ++r) {
    float* mixed = sums[r].mixed + values.offset;
    for (int v = 0; v < kVectors; ++v) store(sum[r][v], mixed + v * kLanes);
  }
  for (int r = 0; r < kItems; ++r) {
    const AttentionItem& item = items[r];
    const std::int32_t stop = smaller_of(values.end, item.visible);
    if (shared >= stop) continue;
    float* mixed = sums[r].mixed + values.offset;
    Floats own[1][kVectors];
    for (int v = 0; v < kVectors; ++v) own[0][v] = load(mixed + v * kLanes);
    for (std::int32_t i = shared; i < stop; ++i) {
      const std::int32_t column = i < item.contiguous ? i : item.tail[i - item.contiguous];
      const float* weight = weights[r] + (i - begin);
      mix<1, kVectors>(values.at(column), 0, 1, &weight, own);
    }
    for (int v = 0; v < kVectors; ++v) store(own[0][v], mixed + v * kLanes);
  }
}

// 16 * kVectors elements of all items' sums.
template <int kVectors>
void mix_all(const Values& values, const AttentionItem* items, std::int32_t n, const float* scores,
             const AttentionSum* sums) {
  const auto mix_from = [&](auto block, std::int32_t i) {
    block(values, items + i, scores + i * kAttentionChunk, sums + i);
  };
  std::int32_t i = 0;
  for (; i + kMixedItems <= n; i += kMixedItems) mix_from(mix_items<kMixedItems, kVectors>, i);
  if constexpr (kMixedItems > 3) {
    if (i + 3 <= n) {
      mix_from(mix_items<3, kVectors>, i);
      i += 3;
    }
  }
  if constexpr (kMixedItems > 2) {
    if (i + 2 <= n) {
      mix_from(mix_items<2, kVectors>, i);
      i += 2;
    }
  }
  for (; i < n; ++i) mix_from(mix_items<1, kVectors>, i);
}

// The last `rest` < 16 elements of one item's sum.
void mix_rest(const Values& values, std::int32_t rest, const AttentionItem& item,
              const float* weights, float* mixed) {
  const std::int32_t stop = smaller_of(values.end, item.visible);
  Floats sum = all(0.0f);
  for (std::int32_t i = values.begin; i < stop; ++i) {
    const std::int32_t column = i < item.contiguous ? i : item.tail[i - item.contiguous];
    sum = fma(all(weights[i - values.begin]), load_part(values.at(column), rest), sum);
  }
  store_part(sum, mixed + values.offset, rest);
}

void mix_chunk(const std::uint16_t* value, std::int32_t head_dim, std::int32_t begin,
               std::int32_t end, const AttentionItem* items, std::int32_t n, const float* scores,
               const AttentionSum* sums) {
  Values values{value, head_dim, 0, begin, end};
  for (; values.offset + kMixedVectors * kLanes <= head_dim;
       values.offset += kMixedVectors * kLanes) {
    mix_all<kMixedVectors>(values, items, n, scores, sums);
  }
  for (; values.offset + kLanes <= head_dim; values.offset += kLanes) {
    mix_all<1>(values, items, n, scores, sums);
  }
  if (values.offset == head_dim) return;
  for (std::int32_t i = 0; i < n; ++i) {
    mix_rest(values, head_dim - values.offset, items[i], scores + i * kAttentionChunk, sums[i].mixed);
  }
}

}  // namespace
}  // namespace specdec::ops
