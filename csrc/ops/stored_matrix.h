#pragma once

#include <cstdint>
#include <vector>

#include "row_kernels.h"

namespace specdec::ops {

// A matrix of which few tiles are looked up. Where its memory is mapped from a file they are read from
// the file: mapped pages would stay, 64 KB and more for a row of 600 bytes, until a long text has all
// of the matrix in memory, and to map them takes longer than to read.
class StoredMatrix {
 public:
  explicit StoredMatrix(const Matrix& matrix);  // whose memory stays where it is
  ~StoredMatrix();
  StoredMatrix(const StoredMatrix&) = delete;
  StoredMatrix& operator=(const StoredMatrix&) = delete;

  // Memory for a tile.
  struct Tile {
    std::vector<std::uint8_t> codes;
    std::vector<std::uint8_t> fine;
    std::vector<std::uint16_t> scales;
  };

  // A matrix whose first tile is the given one; in `memory`, or where it was. From any thread.
  Matrix tile(std::int64_t tile, Tile& memory) const;

 private:
  struct File {
    int handle = -1;  // -1: none
    std::uint64_t offset = 0;

    void open(const void* memory, std::size_t bytes);
    bool read(void* memory, std::size_t bytes, std::uint64_t from) const;  // whether all was read
    void close() const;
  };

  Matrix matrix_;
  File codes_, fine_, scales_;
};

}  // namespace specdec::ops
