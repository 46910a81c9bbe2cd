#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

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

// work(group) for all groups of rows; in parallel where they are many.
template <class Work>
void for_groups(const Call& call, const Rows& rows, const Work& work) {
  // Rounding runs at some 10^9 values per second and core; waking a thread takes microseconds.
  constexpr std::int64_t kAlone = 24 * 1024;
  if (rows.rows * rows.blocks * kBlock <= kAlone) {
    for (std::int64_t group = 0; group < rows.groups(); ++group) work(group);
    return;
  }
  call.parallel(static_cast<std::size_t>(rows.groups()), [&](std::size_t group) noexcept {
    work(static_cast<std::int64_t>(group));
  });
}

// work(begin, end) for parts of 0..tiles, in parallel.
template <class Work>
void for_tiles(const Call& call, std::int64_t tiles, std::int64_t tile_bytes, const Work& work) {
  // Large enough that taking a part costs little, small enough that no thread waits long for the
  // last.
  constexpr std::int64_t kPartBytes = 24 * 1024;
  const std::int64_t parts = std::clamp<std::int64_t>(tiles * tile_bytes / kPartBytes, 1, tiles);
  call.parallel(static_cast<std::size_t>(parts), [&](std::size_t index) noexcept {
    const auto part = static_cast<std::int64_t>(index);
    work(tiles * part / parts, tiles * (part + 1) / parts);
  });
}

}  // namespace specdec::ops
