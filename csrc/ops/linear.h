#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>

#include "op.h"
#include "row_kernels.h"

namespace specdec::ops {

// The packed matrix of a node: what its attributes `bits` and `outputs`, and its initializers codes
// and scales, say. Throws specdec::Error where they do not belong together.
class PackedMatrix {
 public:
  // codes and scales are inputs `codes` and `codes + 1`. parts: the matrices whose tiles alternate
  // (2 for gate and up), each with outputs / parts outputs.
  PackedMatrix(const Node& node, std::size_t codes, std::int64_t parts);

  std::int64_t inputs() const { return shape_.blocks * kBlock; }
  std::int64_t outputs() const { return outputs_; }  // of all parts
  std::int64_t tiles() const { return shape_.tiles; }
  std::int64_t tile_bytes() const { return shape_.tile_bytes(); }

  Matrix of(const Call& call) const;

 private:
  std::size_t input_;
  std::int64_t outputs_;
  Matrix shape_;  // without its memory
};

// Memory for rounded rows. It is the calling thread's, and kept from call to call: ops of all
// sessions that run in a thread share it, and it is as large as the largest of them needed.
Rows rows_in_scratch(std::int64_t rows, std::int64_t blocks);

// Rows that several threads prepare before all of them use all rows.
class Preparation {
 public:
  explicit Preparation(std::int64_t rows) : rows_(rows) {}

  // Prepares rows that nobody has begun, then waits for those of other threads. A thread that waits
  // waits for threads at work only, so it does not matter how many there are.
  template <class Prepare>
  void finish(const Prepare& prepare) {
    if (done_.load(std::memory_order_acquire) == rows_) return;
    for (std::int64_t row = begun_.fetch_add(1, std::memory_order_relaxed); row < rows_;
         row = begun_.fetch_add(1, std::memory_order_relaxed)) {
      prepare(row);
      done_.fetch_add(1, std::memory_order_release);
    }
    constexpr int kPatience = 1000;  // some microseconds; then the core may be needed by another
    for (int i = 0; done_.load(std::memory_order_acquire) != rows_; ++i) {
      if (i >= kPatience) std::this_thread::yield();
    }
  }

 private:
  const std::int64_t rows_;
  std::atomic<std::int64_t> begun_{0};
  std::atomic<std::int64_t> done_{0};
};

// prepare(row) for all rows, then work(begin, end) for parts of tiles 0 to `tiles`; all in one
// parallel section, since to begin one costs as much as some rows.
template <class Prepare, class Work>
void for_tiles(const Call& call, std::int64_t rows, const Prepare& prepare, std::int64_t tiles,
               std::int64_t tile_bytes, const Work& work) {
  // Large enough that taking a part costs little, small enough that no thread waits long for the
  // last.
  constexpr std::int64_t kPartBytes = 24 * 1024;
  const std::int64_t parts = std::clamp<std::int64_t>(tiles * tile_bytes / kPartBytes, 1, tiles);
  Preparation preparation(rows);
  call.parallel(static_cast<std::size_t>(parts), [&](std::size_t index) noexcept {
    preparation.finish(prepare);
    const auto part = static_cast<std::int64_t>(index);
    work(tiles * part / parts, tiles * (part + 1) / parts);
  });
}

}  // namespace specdec::ops
