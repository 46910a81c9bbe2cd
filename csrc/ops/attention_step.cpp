#include "attention_step.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace specdec::ops {
namespace {

constexpr std::size_t kLine = 16;  // floats
// What another thread costs to wake, in the units of AttentionStep::make_units.
constexpr double kWorthThreads = 25e3;
constexpr std::size_t kUnitsPerThread = 4;             // from here on work is even enough
constexpr std::size_t kMostPartial = std::size_t{4} << 20;  // floats

std::int32_t chunks_of(std::int32_t visible) {
  return (visible + kAttentionChunk - 1) / kAttentionChunk;
}

}  // namespace

void AttentionStep::begin(const AttentionShape& shape, const AttentionTensors& tensors,
                          const AttentionKernels& kernels, std::size_t threads) {
  shape_ = shape;
  tensors_ = tensors;
  kernels_ = kernels;
  plan_.lay_out(shape, tensors.rows);
  padded_dim_ = (static_cast<std::size_t>(shape.head_dim) + kLine - 1) / kLine * kLine;
  const std::size_t places = static_cast<std::size_t>(shape.rows) * shape.heads;
  queries_.resize(places * (padded_dim_ / kLine));
  make_blocks();
  make_units(threads);
  next_unit_ = 0;
}

void AttentionStep::make_blocks() {
  blocks_.clear();
  const std::int32_t group = shape_.group();
  const std::int32_t head_step = std::min(group, kAttentionItems);
  const std::int32_t most_rows = kAttentionItems / head_step;
  const std::vector<std::int32_t>& order = plan_.order();
  const auto sequence = [&](std::int32_t i) { return plan_.row(order[i]).sequence; };
  for (std::int32_t begin = 0; begin < shape_.rows;) {
    std::int32_t end = begin + 1;  // of the sequence
    while (end < shape_.rows && sequence(end) == sequence(begin)) ++end;
    const std::int32_t parts = (end - begin + most_rows - 1) / most_rows;
    const std::int32_t part_rows = (end - begin + parts - 1) / parts;
    for (; begin < end; begin += part_rows) {
      const std::int32_t part_end = std::min(end, begin + part_rows);
      std::int32_t chunks = 0;
      for (std::int32_t i = begin; i < part_end; ++i) {
        chunks = std::max(chunks, chunks_of(plan_.row(order[i]).visible));
      }
      for (std::int32_t head = 0; head < group; head += head_step) {
        blocks_.push_back({begin, part_end, head, std::min(group, head + head_step), chunks});
      }
    }
    begin = end;
  }
}

void AttentionStep::make_units(std::size_t threads) {
  // Rough cycles: 16 multiply-adds each, and 4 bytes of the cache.
  double cost = 0;
  std::int32_t chunks = 0;
  for (const Block& block : blocks_) {
    const double heads = (block.end - block.begin) * (block.head_end - block.head_begin);
    const double columns = plan_.row(plan_.order()[block.end - 1]).visible;
    cost += columns * shape_.kv_heads * shape_.head_dim * (heads / 8 + 2);
    chunks = std::max(chunks, block.chunks);
  }
  if (cost < kWorthThreads) threads = 1;
  const std::size_t kv_heads = shape_.kv_heads;
  const std::size_t places = static_cast<std::size_t>(shape_.rows) * shape_.heads;
  split_ = threads > 1 && chunks > 1 && blocks_.size() * kv_heads < kUnitsPerThread * threads &&
           (chunks - 1) * places * padded_dim_ <= kMostPartial;
  units_.clear();
  // The last chunks, which are not full, come last, where they even out the threads' ends.
  const std::int32_t rounds = split_ ? chunks : 1;
  for (std::int32_t chunk = 0; chunk < rounds; ++chunk) {
    for (std::size_t b = blocks_.size(); b-- > 0;) {  // later rows see more
      const Block& block = blocks_[b];
      if (split_ && chunk >= block.chunks) continue;
      const std::int32_t end = split_ ? chunk + 1 : block.chunks;
      for (std::int32_t head = 0; head < shape_.kv_heads; ++head) {
        units_.push_back({static_cast<std::int32_t>(b), head, chunk, end});
      }
    }
  }
  workers_ = std::max<std::size_t>(1, std::min(threads, units_.size()));
  const std::size_t kept = split_ ? chunks : 1;
  greatest_.resize(std::max(greatest_.size(), kept * places));
  total_.resize(greatest_.size());
  if (!split_) return;
  const std::size_t lines = (kept - 1) * places * (padded_dim_ / kLine);
  if (partial_.size() < lines) partial_.resize(lines);
  const std::size_t counters = blocks_.size() * kv_heads;
  if (left_size_ < counters) {
    left_ = std::make_unique<std::atomic<std::int32_t>[]>(counters);
    left_size_ = counters;
  }
  count_units();
}

void AttentionStep::count_units() noexcept {
  const std::size_t kv_heads = shape_.kv_heads;
  for (std::size_t i = 0; i < blocks_.size() * kv_heads; ++i) left_[i] = blocks_[i / kv_heads].chunks;
}

void AttentionStep::next_layer(float* key, float* value) noexcept {
  tensors_.key = key;
  tensors_.value = value;
  next_unit_ = 0;
  if (split_) count_units();
}

float* AttentionStep::cache(float* tensor, std::int32_t sequence,
                            std::int32_t kv_head) const noexcept {
  const std::size_t plane = static_cast<std::size_t>(sequence) * shape_.kv_heads + kv_head;
  return tensor + plane * shape_.capacity * shape_.head_dim;
}

// A place is row * heads + head.
float* AttentionStep::query(std::size_t place) noexcept {
  return queries_[place * (padded_dim_ / kLine)].lane;
}

AttentionSum AttentionStep::partial(std::int32_t chunk, std::size_t place) noexcept {
  const std::size_t places = static_cast<std::size_t>(shape_.rows) * shape_.heads;
  const std::size_t index = chunk * places + place;
  float* const mixed = chunk == 0 ? tensors_.mixed + place * shape_.head_dim
                                  : partial_[(index - places) * (padded_dim_ / kLine)].lane;
  return {&greatest_[index], &total_[index], mixed};
}

void AttentionStep::write_row(std::size_t index) noexcept {
  const PlannedRow& row = plan_.row(static_cast<std::int32_t>(index));
  const std::size_t head_dim = shape_.head_dim;
  const std::size_t angles = static_cast<std::size_t>(row.visible - 1) * (head_dim / 2);
  const float* const cosine = tensors_.cosine + angles;
  const float* const sine = tensors_.sine + angles;
  const std::size_t heads = shape_.heads;
  const std::size_t kv_heads = shape_.kv_heads;
  const float* from = tensors_.qkv + index * (heads + 2 * kv_heads) * head_dim;
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  for (std::size_t head = 0; head < heads; ++head, from += head_dim) {
    float* const out = query(index * heads + head);
    kernels_.rotate(from, cosine, sine, shape_.head_dim, scale, out);
    std::fill(out + head_dim, out + padded_dim_, 0.0f);
  }
  const std::size_t column = static_cast<std::size_t>(row.column) * head_dim;
  for (std::int32_t head = 0; head < shape_.kv_heads; ++head, from += head_dim) {
    kernels_.rotate(from, cosine, sine, shape_.head_dim, 1.0f,
                    cache(tensors_.key, row.sequence, head) + column);
  }
  for (std::int32_t head = 0; head < shape_.kv_heads; ++head, from += head_dim) {
    std::memcpy(cache(tensors_.value, row.sequence, head) + column, from,
                head_dim * sizeof(float));
  }
}

void AttentionStep::work() noexcept {
  for (;;) {
    const std::size_t unit = next_unit_.fetch_add(1, std::memory_order_relaxed);
    if (unit >= units_.size()) return;
    run(units_[unit]);
  }
}

// The unit's items that see something of a chunk, and their places.
std::int32_t AttentionStep::gather(const Unit& unit, std::int32_t chunk, AttentionItem* items,
                                   std::int32_t* places) const noexcept {
  const Block& block = blocks_[unit.block];
  const std::int32_t first_head = unit.kv_head * shape_.group();
  std::int32_t n = 0;
  for (std::int32_t i = block.begin; i < block.end; ++i) {
    const std::int32_t index = plan_.order()[i];
    const PlannedRow& row = plan_.row(index);
    if (row.visible <= chunk * kAttentionChunk) continue;
    for (std::int32_t head = block.head_begin; head < block.head_end; ++head, ++n) {
      places[n] = index * shape_.heads + first_head + head;
      const float* query = queries_[places[n] * (padded_dim_ / kLine)].lane;
      items[n] = {query, row.visible, row.contiguous, plan_.tail(row)};
    }
  }
  return n;
}

void AttentionStep::run(const Unit& unit) noexcept {
  if (!split_) return run_whole(unit);
  const Block& block = blocks_[unit.block];
  const std::int32_t sequence = plan_.row(plan_.order()[block.begin]).sequence;
  AttentionItem items[kAttentionItems];
  AttentionSum sums[kAttentionItems];
  std::int32_t places[kAttentionItems];
  std::int32_t n = gather(unit, unit.chunk_begin, items, places);
  for (std::int32_t i = 0; i < n; ++i) sums[i] = partial(unit.chunk_begin, places[i]);
  kernels_.sum_chunk(cache(tensors_.key, sequence, unit.kv_head),
                     cache(tensors_.value, sequence, unit.kv_head), shape_.head_dim,
                     unit.chunk_begin, items, n, sums);
  // Releases these sums and, where it is the last, acquires those of the others.
  const std::size_t counter = static_cast<std::size_t>(unit.block) * shape_.kv_heads + unit.kv_head;
  if (left_[counter].fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  n = gather(unit, 0, items, places);
  for (std::int32_t i = 0; i < n; ++i) {
    const AttentionSum sum = partial(0, places[i]);
    for (std::int32_t chunk = 1; chunk < chunks_of(items[i].visible); ++chunk) {
      kernels_.merge(sum, partial(chunk, places[i]), shape_.head_dim);
    }
    kernels_.finish(sum, shape_.head_dim);
  }
}

void AttentionStep::run_whole(const Unit& unit) noexcept {
  const Block& block = blocks_[unit.block];
  const std::int32_t sequence = plan_.row(plan_.order()[block.begin]).sequence;
  const float* const key = cache(tensors_.key, sequence, unit.kv_head);
  const float* const value = cache(tensors_.value, sequence, unit.kv_head);
  AttentionItem items[kAttentionItems];
  AttentionSum sums[kAttentionItems];
  std::int32_t places[kAttentionItems];
  alignas(64) float mixed[kAttentionItems * kLargestHeadDim];
  float greatest[kAttentionItems];
  float total[kAttentionItems];
  for (std::int32_t chunk = unit.chunk_begin; chunk < unit.chunk_end; ++chunk) {
    const std::int32_t n = gather(unit, chunk, items, places);
    for (std::int32_t i = 0; i < n; ++i) {
      sums[i] = chunk == 0 ? partial(0, places[i])
                           : AttentionSum{greatest + i, total + i, mixed + i * kLargestHeadDim};
    }
    kernels_.sum_chunk(key, value, shape_.head_dim, chunk, items, n, sums);
    for (std::int32_t i = 0; i < n && chunk > 0; ++i) {
      kernels_.merge(partial(0, places[i]), sums[i], shape_.head_dim);
    }
  }
  const std::int32_t n = gather(unit, 0, items, places);
  for (std::int32_t i = 0; i < n; ++i) kernels_.finish(partial(0, places[i]), shape_.head_dim);
}

}  // namespace specdec::ops
