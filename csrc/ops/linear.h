#pragma once

#include <algorithm>
#include <cstdint>

#include "op.h"
#include "row_kernels.h"
#include "stages.h"

namespace specdec::ops {

// A packed matrix of a node: what its initializers codes and scales say. Throws specdec::Error where
// they do not belong together.
class PackedMatrix {
 public:
  // codes and scales are inputs `codes` and `codes + 1`. parts: the matrices whose tiles alternate
  // (2 for gate and up), each with outputs / parts outputs. The node's attributes `outputs` and `bits`
  // say how many outputs there are, and bits.
  PackedMatrix(const Node& node, std::size_t codes, std::int64_t parts);
  // The same for nodes that take 6 bits too, with the lower ones at input `fine`.
  struct Inputs {
    std::size_t codes, fine;
  };
  PackedMatrix(const Node& node, Inputs inputs, std::int64_t parts);
  // The codes say how many bits they have.
  PackedMatrix(const Node& node, std::size_t codes, std::int64_t outputs, std::int64_t parts);

  std::int64_t inputs() const { return shape_.blocks * kBlock; }
  std::int64_t outputs() const { return outputs_; }  // of all parts
  std::int64_t threads() const { return threads_; }  // that the CPU has
  bool mixed() const { return shape_.bits == 6; }    // blocks of 8 bits and of 6

  Matrix of(const Call& call) const;
  Matrix of(const Node& node) const;  // for as long as the node's kernel

 private:
  static constexpr std::size_t kNowhere = ~std::size_t{0};

  PackedMatrix(const Node& node, Inputs inputs, std::int64_t outputs, std::int64_t parts,
               std::int64_t bits);
  void read_mixed(const Node& node, const Shape& codes, const Shape& scales);

  Inputs inputs_;
  std::int64_t outputs_;
  Matrix shape_;  // without its memory
  std::int64_t threads_;
};

// Throws unless a node's initializers `order` and `factors` are [inputs], of int32 and of float, and the
// first names each input once: they belong to a matrix of 6 bits.
void check_order(const Node& node, std::size_t order_input, const char* order_name,
                 std::size_t factors_input, const char* factors_name, std::int64_t inputs);

// Units of tiles that a thread takes at a time: large enough that taking them costs little, small
// enough that no thread waits long for the last.
std::int64_t part_units(const Matrix& matrix, std::int64_t unit_tiles);

// Memory for rounded rows. It is the calling thread's, and kept from call to call: ops of all
// sessions that run in a thread share it, and it is as large as the largest of them needed.
Rows rows_in_scratch(std::int64_t rows, std::int64_t blocks);

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

// What a thread will begin a product with, brought near while it waits for what comes before.
class Upcoming {
 public:
  Upcoming() = default;  // nothing
  Upcoming(const Matrix& matrix, std::int64_t unit_tiles, const Stages::Thread& thread);

  // The next lines, as far as they are worth it: no more than a part of the second nearest cache.
  void ask(std::int64_t lines) noexcept;

 private:
  const std::uint8_t* next_ = nullptr;
  const std::uint8_t* end_ = nullptr;
};

constexpr std::int64_t kLinesAtOnce = 24;  // that are asked for before a thread looks up

// prepare(piece) for all pieces of the rows, then work(begin, end) for parts of units of tiles 0 to
// `units`; all in one parallel section, since to begin one costs as much as some rows.
template <class Prepare, class Work>
void for_tiles(const Call& call, const Pieces& pieces, const Prepare& prepare,
               const PackedMatrix& packed, const Matrix& matrix, std::int64_t unit_tiles,
               const Work& work) {
  const std::int64_t units = matrix.tiles / unit_tiles;
  const std::int64_t part = part_units(matrix, unit_tiles);
  const std::int64_t parts = (units + part - 1) / part;
  Stages stages(std::min(packed.threads(), parts));
  call.parallel(static_cast<std::size_t>(stages.ranges()), [&](std::size_t range) noexcept {
    Stages::Thread thread(stages, static_cast<std::int64_t>(range));
    Upcoming upcoming(matrix, unit_tiles, thread);
    thread.stage(pieces.count(), [&](std::int64_t piece) { prepare(pieces[piece]); });
    upcoming.ask(kLinesAtOnce);
    thread.stage(
        parts, [&] { upcoming.ask(1); },
        [&](std::int64_t i) { work(i * part, std::min((i + 1) * part, units)); });
  });
}

}  // namespace specdec::ops
