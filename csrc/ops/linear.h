#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>

#include "op.h"
#include "row_kernels.h"

namespace specdec::ops {

// A packed matrix of a node: what its initializers codes and scales say. Throws specdec::Error where
// they do not belong together.
class PackedMatrix {
 public:
  // codes and scales are inputs `codes` and `codes + 1`. parts: the matrices whose tiles alternate
  // (2 for gate and up), each with outputs / parts outputs. The node's attributes `outputs` and `bits`
  // say how many outputs there are, and bits.
  PackedMatrix(const Node& node, std::size_t codes, std::int64_t parts);
  // The codes say how many bits they have.
  PackedMatrix(const Node& node, std::size_t codes, std::int64_t outputs, std::int64_t parts);

  std::int64_t inputs() const { return shape_.blocks * kBlock; }
  std::int64_t outputs() const { return outputs_; }  // of all parts
  std::int64_t threads() const { return threads_; }  // that the CPU has

  Matrix of(const Call& call) const;
  Matrix of(const Node& node) const;  // for as long as the node's kernel

 private:
  PackedMatrix(const Node& node, std::size_t codes, std::int64_t outputs, std::int64_t parts,
               std::int64_t bits);

  std::size_t input_;
  std::int64_t outputs_;
  Matrix shape_;  // without its memory
  std::int64_t threads_;
};

// Units of tiles that a thread takes at a time: large enough that taking them costs little, small
// enough that no thread waits long for the last.
std::int64_t part_units(const Matrix& matrix, std::int64_t unit_tiles);

// Memory for rounded rows. It is the calling thread's, and kept from call to call: ops of all
// sessions that run in a thread share it, and it is as large as the largest of them needed.
Rows rows_in_scratch(std::int64_t rows, std::int64_t blocks);

// What threads make ready before all of them use it, in pieces.
class Preparation {
 public:
  explicit Preparation(std::int64_t pieces) : pieces_(pieces) {}

  // Prepares pieces that nobody has begun, then waits for those of other threads. A thread that waits
  // waits for threads at work only, so it does not matter how many there are.
  template <class Prepare>
  void finish(const Prepare& prepare) {
    if (done_.load(std::memory_order_acquire) == pieces_) return;
    for (std::int64_t piece = begun_.fetch_add(1, std::memory_order_relaxed); piece < pieces_;
         piece = begun_.fetch_add(1, std::memory_order_relaxed)) {
      prepare(piece);
      done_.fetch_add(1, std::memory_order_release);
    }
    constexpr int kPatience = 1000;  // some microseconds; then the core may be needed by another
    for (int i = 0; done_.load(std::memory_order_acquire) != pieces_; ++i) {
      if (i >= kPatience) std::this_thread::yield();
    }
  }

 private:
  const std::int64_t pieces_;
  std::atomic<std::int64_t> begun_{0};
  std::atomic<std::int64_t> done_{0};
};

// The pieces that rows are rounded in: some blocks of a group's rows. Pieces of one row would have
// threads write to each other's cache lines, since the rows of a group lie block by block.
class Pieces {
 public:
  explicit Pieces(const Rows& rows);

  std::int64_t count() const { return groups_ * of_group_; }
  Piece operator[](std::int64_t i) const;

 private:
  std::int64_t groups_, of_group_, blocks_;
};

// Tiles 0 to `tiles` in parts, for threads that take one after the other: each begins in a range of
// its own, where its parts follow each other in memory, and helps with those of others at the end.
class Shares {
 public:
  // part_tiles: of a part.
  Shares(std::int64_t tiles, std::int64_t part_tiles, std::int64_t ranges);

  std::int64_t ranges() const { return ranges_; }
  std::int64_t first_tile(std::int64_t range) const { return first_part(range) * part_tiles_; }

  // work(begin, end) until nothing is left, from `range` on.
  template <class Work>
  void take(std::int64_t range, const Work& work) {
    for (std::int64_t i = 0; i < ranges_; ++i, range = range + 1 == ranges_ ? 0 : range + 1) {
      const std::int64_t first = first_part(range);
      const std::int64_t count = first_part(range + 1) - first;
      std::atomic<std::int64_t>& taken = taken_[range].parts;
      for (std::int64_t part = taken.fetch_add(1, std::memory_order_relaxed); part < count;
           part = taken.fetch_add(1, std::memory_order_relaxed)) {
        const std::int64_t begin = (first + part) * part_tiles_;
        work(begin, std::min(begin + part_tiles_, tiles_));
      }
    }
  }

  static constexpr std::int64_t kMostRanges = 16;

 private:
  struct alignas(64) Taken {  // a cache line each
    std::atomic<std::int64_t> parts;
  };

  std::int64_t first_part(std::int64_t range) const { return parts_ * range / ranges_; }

  const std::int64_t tiles_;
  const std::int64_t part_tiles_;
  const std::int64_t parts_;
  const std::int64_t ranges_;
  Taken taken_[kMostRanges];
};

// prepare(piece) for all pieces of the rows, then work(begin, end) for parts of units of tiles 0 to
// `units`; all in one parallel section, since to begin one costs as much as some rows.
template <class Prepare, class Work>
void for_tiles(const Call& call, const Pieces& pieces, const Prepare& prepare,
               const PackedMatrix& packed, const Matrix& matrix, std::int64_t unit_tiles,
               const Work& work) {
  Shares shares(matrix.tiles / unit_tiles, part_units(matrix, unit_tiles), packed.threads());
  Preparation preparation(pieces.count());
  call.parallel(static_cast<std::size_t>(shares.ranges()), [&](std::size_t index) noexcept {
    const auto range = static_cast<std::int64_t>(index);
    matrix.ask_for(shares.first_tile(range) * unit_tiles);
    preparation.finish([&](std::int64_t piece) { prepare(pieces[piece]); });
    shares.take(range, work);
  });
}

}  // namespace specdec::ops
