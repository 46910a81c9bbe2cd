#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "attention_kernels.h"
#include "attention_plan.h"

namespace specdec::ops {

// Memory of one step. Rows are the step's, in its order.
struct AttentionTensors {
  const float* qkv = nullptr;          // [S, (heads + 2 * kv_heads) * head_dim]
  const std::int32_t* rows = nullptr;  // [4, S], see AttentionPlan
  const float* cosine = nullptr;       // [P, head_dim / 2]
  const float* sine = nullptr;         // [P, head_dim / 2]
  // Halves, read and written: [B, kv_heads, capacity / kKeyTile, head_dim, kKeyTile], so that scores of
  // many columns come out beside each other, and [B, kv_heads, capacity, head_dim].
  std::uint16_t* key = nullptr;
  std::uint16_t* value = nullptr;
  float* mixed = nullptr;              // [S, heads * head_dim], written
};

// One step of attention: begin, then run_write for all of writes(), then work in as many threads as
// workers() says. Its memory is kept from step to step.
class AttentionStep {
 public:
  // Throws Error where rows are not such. threads: that could be had.
  void begin(const AttentionShape& shape, const AttentionTensors& tensors,
             const AttentionKernels& kernels, std::size_t threads);

  // Turns queries and keys, and writes keys and values into the cache: run_write(i) for i = 0 to
  // writes() - 1, in any order, from several threads. Each does some heads of all rows, since keys of
  // neighbouring columns share lines of the cache.
  std::size_t writes() const;
  void run_write(std::size_t write) noexcept;

  // The same step in the next layer: with other memory for K and V, and other contents in qkv. In one
  // thread, and all others' work on the layer before is done.
  void next_layer(std::uint16_t* key, std::uint16_t* value) noexcept;

  // work() in pieces: run_unit(i) for i = 0 to units() - 1, in any order, from several threads.
  std::size_t units() const { return units_.size(); }
  void run_unit(std::size_t unit) noexcept { run(units_[unit]); }

  std::size_t workers() const { return workers_; }

  // Takes units of work until none is left.
  void work() noexcept;

 private:
  // Heads of neighbouring rows of a sequence that are worked on together.
  struct Block {
    std::int32_t begin, end;            // of the plan's order
    std::int32_t head_begin, head_end;  // of the query heads that share a K/V head
    std::int32_t chunks;                // of the row that sees most
  };
  // A block's sums with one K/V head, over some chunks.
  struct Unit {
    std::int32_t block, kv_head;
    std::int32_t chunk_begin, chunk_end;
  };
  struct alignas(64) Line {
    float lane[16];
  };

  void make_blocks(std::size_t threads);
  void make_units(std::size_t threads);
  void split_units(std::int32_t chunks, std::size_t threads);
  void count_units() noexcept;
  void run(const Unit& unit) noexcept;
  void run_whole(const Unit& unit) noexcept;
  std::int32_t gather(const Unit& unit, std::int32_t chunk, AttentionItem* items,
                      std::int32_t* places) const noexcept;
  void write_query(std::size_t head) noexcept;
  void write_key(std::size_t kv_head) noexcept;
  void write_value(std::size_t kv_head) noexcept;
  const float* projected(std::size_t row, std::size_t head) const noexcept;
  std::uint16_t* cache(std::uint16_t* tensor, std::int32_t sequence,
                       std::int32_t kv_head) const noexcept;
  const std::uint16_t* chunk_keys(const std::uint16_t* key, std::int32_t chunk) const noexcept;
  const std::uint16_t* first_keys(const Unit* unit) const noexcept;
  float* query(std::size_t place) noexcept;
  AttentionSum partial(std::int32_t chunk, std::size_t place) noexcept;

  AttentionShape shape_;
  AttentionTensors tensors_;
  AttentionKernels kernels_{};
  AttentionPlan plan_;
  std::size_t padded_dim_ = 0;   // head_dim rounded up to whole lines
  std::vector<Line> queries_;    // [S * heads, padded_dim]
  std::vector<Block> blocks_;
  std::vector<Unit> units_;
  std::vector<Unit> dealt_;  // of use to split_units alone
  std::size_t workers_ = 1;
  std::atomic<std::size_t> next_unit_{0};
  // Where a unit is one chunk: sums by chunk, those of the first in `mixed`, and how many units of a
  // block and K/V head are still to come. The last of these merges.
  bool near_ = false;   // all rows see few enough columns
  bool split_ = false;
  std::vector<float> greatest_;  // [chunks, S * heads]
  std::vector<float> total_;     // [chunks, S * heads]
  std::vector<Line> partial_;    // [chunks - 1, S * heads, padded_dim]
  std::unique_ptr<std::atomic<std::int32_t>[]> left_;  // [blocks, kv_heads]
  std::size_t left_size_ = 0;
};

}  // namespace specdec::ops
