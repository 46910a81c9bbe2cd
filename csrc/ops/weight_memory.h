#pragma once

#include <cstddef>
#include <cstdint>

#include "mapped_files.h"
#include "row_kernels.h"

namespace specdec::ops {

// Memory of its own for the weights of an op, in huge pages. Weights are read from end to end in every
// step; mapped from a file they lie in pages of 4 KB, wherever in physical memory those were, and a
// step takes longer by a seventh, or by half where they lie badly (the same bytes, read anew).
class WeightMemory {
 public:
  // Room for `bytes`. Where the system gives no huge pages on request, or too few bytes are asked for
  // to be worth it, there is none: weights then stay where they are.
  explicit WeightMemory(std::size_t bytes);
  ~WeightMemory();
  WeightMemory(const WeightMemory&) = delete;
  WeightMemory& operator=(const WeightMemory&) = delete;

  static std::size_t bytes_of(const Matrix& matrix);  // that its copy takes

  // The matrix with a copy of its memory; as it is where there is no room. What the copy was made from
  // is given back to the system where it was mapped from a file, part by part while it is copied, so
  // that weights are in memory once; whoever reads it again gets it from the file.
  Matrix keep(const Matrix& matrix);

 private:
  const void* copy(const void* source, std::size_t bytes);

  void* mapped_ = nullptr;
  std::size_t mapped_bytes_ = 0;
  std::uint8_t* next_ = nullptr;
  std::uint8_t* end_ = nullptr;
  MappedFiles files_;
};

}  // namespace specdec::ops
