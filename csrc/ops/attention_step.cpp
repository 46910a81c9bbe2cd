#include "attention_step.h"

#include <algorithm>
#include <cmath>

namespace specdec::ops {
namespace {

constexpr std::size_t kLine = 16;  // floats
constexpr std::size_t kHeadsPerWrite = 2;
// What another thread costs to wake, in the units of AttentionStep::make_units.
constexpr double kWorthThreads = 25e3;
constexpr std::size_t kUnitsPerThread = 4;             // from here on work is even enough
constexpr std::int32_t kNear = 2048;  // columns
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
  make_blocks(threads);
  make_units(threads);
  next_unit_ = 0;
}

void AttentionStep::make_blocks(std::size_t threads) {
  blocks_.clear();
  // What is near enough to be read by several threads is shared out by rows, with nothing to merge.
  std::int32_t visible = 0;
  for (std::int32_t i = 0; i < shape_.rows; ++i) visible = std::max(visible, plan_.row(i).visible);
  near_ = visible <= kNear;
  const std::size_t kv_heads = shape_.kv_heads;
  const std::int32_t group = shape_.group();
  const std::int32_t head_step = std::min(group, kAttentionItems);
  const std::int32_t most_rows = kAttentionItems / head_step;
  const std::vector<std::int32_t>& order = plan_.order();
  const auto sequence = [&](std::int32_t i) { return plan_.row(order[i]).sequence; };
  for (std::int32_t begin = 0; begin < shape_.rows;) {
    std::int32_t end = begin + 1;  // of the sequence
    while (end < shape_.rows && sequence(end) == sequence(begin)) ++end;
    std::int32_t parts = (end - begin + most_rows - 1) / most_rows;
    if (near_ && static_cast<std::size_t>(parts) * kv_heads < kUnitsPerThread * threads) {
      parts = std::max(parts, std::min(end - begin, static_cast<std::int32_t>(threads)));
    }
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
  // Rough cycles: 16 multiply-adds each, and 2 bytes of the cache.
  double cost = 0;
  std::int32_t chunks = 0;
  for (const Block& block : blocks_) {
    const double heads = (block.end - block.begin) * (block.head_end - block.head_begin);
    const double columns = plan_.row(plan_.order()[block.end - 1]).visible;
    cost += columns * shape_.kv_heads * shape_.head_dim * (heads / 8 + 2);
    chunks = std::max(chunks, block.chunks);
  }
  const std::size_t kv_heads = shape_.kv_heads;
  const std::size_t places = static_cast<std::size_t>(shape_.rows) * shape_.heads;
  const std::size_t few = (near_ ? 2 : kUnitsPerThread) * threads;
  split_ = threads > 1 && chunks > 1 && blocks_.size() * kv_heads < few &&
           (chunks - 1) * places * padded_dim_ <= kMostPartial;
  units_.clear();
  if (split_) {
    split_units(chunks, threads);
  } else {
    for (std::int32_t head = 0; head < shape_.kv_heads; ++head) {
      for (std::size_t b = blocks_.size(); b-- > 0;) {  // later rows see more
        units_.push_back({static_cast<std::int32_t>(b), head, 0, blocks_[b].chunks});
      }
    }
  }
  workers_ = cost < kWorthThreads ? 1 : std::max<std::size_t>(1, std::min(threads, units_.size()));
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

// Threads begin at ranges of units that follow each other: each gets large ones and, at the end, small
// ones, which are the last chunks.
void AttentionStep::split_units(std::int32_t chunks, std::size_t threads) {
  dealt_.clear();
  for (std::int32_t chunk = 0; chunk < chunks; ++chunk) {
    for (std::size_t b = 0; b < blocks_.size(); ++b) {
      if (chunk >= blocks_[b].chunks) continue;
      for (std::int32_t head = 0; head < shape_.kv_heads; ++head) {
        dealt_.push_back({static_cast<std::int32_t>(b), head, chunk, chunk + 1});
      }
    }
  }
  const std::size_t count = dealt_.size();
  units_.resize(count);
  std::size_t from = 0;
  for (std::size_t round = 0; from < count; ++round) {
    for (std::size_t range = threads; range-- > 0;) {
      const std::size_t place = count * range / threads + round;
      if (place < count * (range + 1) / threads) units_[place] = dealt_[from++];
    }
  }
}

void AttentionStep::count_units() noexcept {
  const std::size_t kv_heads = shape_.kv_heads;
  for (std::size_t i = 0; i < blocks_.size() * kv_heads; ++i) left_[i] = blocks_[i / kv_heads].chunks;
}

void AttentionStep::next_layer(std::uint16_t* key, std::uint16_t* value) noexcept {
  tensors_.key = key;
  tensors_.value = value;
  next_unit_ = 0;
  if (split_) count_units();
}

std::uint16_t* AttentionStep::cache(std::uint16_t* tensor, std::int32_t sequence,
                                    std::int32_t kv_head) const noexcept {
  const std::size_t plane = static_cast<std::size_t>(sequence) * shape_.kv_heads + kv_head;
  return tensor + plane * shape_.capacity * shape_.head_dim;
}

const std::uint16_t* AttentionStep::chunk_keys(const std::uint16_t* key,
                                               std::int32_t chunk) const noexcept {
  return key + static_cast<std::size_t>(chunk) * kAttentionChunk * shape_.head_dim;
}

// The first tile of keys of a unit; null behind the last.
const std::uint16_t* AttentionStep::first_keys(const Unit* unit) const noexcept {
  if (unit == units_.data() + units_.size()) return nullptr;
  const std::int32_t sequence = plan_.row(plan_.order()[blocks_[unit->block].begin]).sequence;
  return chunk_keys(cache(tensors_.key, sequence, unit->kv_head), unit->chunk_begin);
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

std::size_t AttentionStep::writes() const {
  const std::size_t heads = static_cast<std::size_t>(shape_.heads) + 2 * shape_.kv_heads;
  return (heads + kHeadsPerWrite - 1) / kHeadsPerWrite;
}

void AttentionStep::run_write(std::size_t write) noexcept {
  const std::size_t heads = shape_.heads;
  const std::size_t kv_heads = shape_.kv_heads;
  const std::size_t end = std::min((write + 1) * kHeadsPerWrite, heads + 2 * kv_heads);
  for (std::size_t head = write * kHeadsPerWrite; head < end; ++head) {
    if (head < heads) {
      write_query(head);
    } else if (head < heads + kv_heads) {
      write_key(head - heads);
    } else {
      write_value(head - heads - kv_heads);
    }
  }
}

const float* AttentionStep::projected(std::size_t row, std::size_t head) const noexcept {
  const std::size_t heads = static_cast<std::size_t>(shape_.heads) + 2 * shape_.kv_heads;
  return tensors_.qkv + (row * heads + head) * shape_.head_dim;
}

void AttentionStep::write_query(std::size_t head) noexcept {
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim));
  for (std::int32_t row = 0; row < shape_.rows; ++row) {
    const std::size_t angles = plan_.angles(row, shape_.head_dim);
    kernels_.rotate(projected(row, head), tensors_.cosine + angles, tensors_.sine + angles,
                    shape_.head_dim, scale, query(row * static_cast<std::size_t>(shape_.heads) + head));
  }
}

void AttentionStep::write_key(std::size_t kv_head) noexcept {
  const std::size_t head_dim = shape_.head_dim;
  alignas(64) float turned[kLargestHeadDim];
  alignas(64) std::uint16_t halves[kLargestHeadDim];
  for (std::int32_t index = 0; index < shape_.rows; ++index) {
    const PlannedRow& row = plan_.row(index);
    const std::size_t angles = plan_.angles(index, shape_.head_dim);
    kernels_.rotate(projected(index, shape_.heads + kv_head), tensors_.cosine + angles,
                    tensors_.sine + angles, shape_.head_dim, 1.0f, turned);
    kernels_.halve(turned, shape_.head_dim, halves);
    std::uint16_t* const column =
        cache(tensors_.key, row.sequence, static_cast<std::int32_t>(kv_head)) +
        row.column / kKeyTile * head_dim * kKeyTile + row.column % kKeyTile;
    for (std::size_t d = 0; d < head_dim; ++d) column[d * kKeyTile] = halves[d];
  }
}

void AttentionStep::write_value(std::size_t kv_head) noexcept {
  const std::size_t head_dim = shape_.head_dim;
  for (std::int32_t index = 0; index < shape_.rows; ++index) {
    const PlannedRow& row = plan_.row(index);
    kernels_.halve(projected(index, shape_.heads + shape_.kv_heads + kv_head), shape_.head_dim,
                   cache(tensors_.value, row.sequence, static_cast<std::int32_t>(kv_head)) +
                       row.column * head_dim);
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
                     unit.chunk_begin, items, n, sums, first_keys(&unit + 1));
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
  const std::uint16_t* const key = cache(tensors_.key, sequence, unit.kv_head);
  const std::uint16_t* const value = cache(tensors_.value, sequence, unit.kv_head);
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
    const std::uint16_t* const next = chunk + 1 < unit.chunk_end
                                          ? chunk_keys(key, chunk + 1)
                                          : first_keys(&unit + 1);
    kernels_.sum_chunk(key, value, shape_.head_dim, chunk, items, n, sums, next);
    for (std::int32_t i = 0; i < n && chunk > 0; ++i) {
      kernels_.merge(partial(0, places[i]), sums[i], shape_.head_dim);
    }
  }
  const std::int32_t n = gather(unit, 0, items, places);
  for (std::int32_t i = 0; i < n; ++i) kernels_.finish(partial(0, places[i]), shape_.head_dim);
}

}  // namespace specdec::ops
