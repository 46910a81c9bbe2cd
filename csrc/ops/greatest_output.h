#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "row_kernels.h"

namespace specdec::ops {

// Of a head of 6 bits: what its outputs can be beyond what they are without `fine`.
struct Spread {
  const float* of_output;  // [16 * tiles]: the norm of what `fine` adds to an output's weights
  // The greatest norm that an output's weights could have by their scales, as large as any are on the way
  // to a sum: 128 scales in 8 bits, and there counted twice, and 60 + 30.5 in 6.
  float size;
};

// Finds the greatest output of each row, reading a third less of the weights than a product does.
//
// Without `fine` an output is known to within the product of two norms (Cauchy-Schwarz): of what the
// weights are beyond their upper bits, and of the row as it was rounded. So all outputs get an upper
// bound. One that is near the greatest is computed as the product does, and then, of the others, the
// few whose bounds are as great as that: what is found is what comparing all would have found.
//
// That pays as long as a step waits for weights. Of more rows all outputs are computed: their products
// take longer than reading, and what one row leaves open is computed for all.
//
// In stages, each for all of its parts before the next begins; ranges are threads.
class GreatestOutput {
 public:
  static constexpr std::int64_t kMostRows = 4;  // that bounds are made for

  // bounds[rows, outputs] is memory.
  GreatestOutput(const RowKernels& kernels, const Matrix& matrix, const Rows& rows,
                 const Spread& spread, std::int64_t outputs, std::int64_t ranges, float* bounds);

  bool bounded() const { return bounds_ != nullptr; }  // else 4 and 5 are all

  void measure(std::int64_t row);                                            // 1: rounded rows
  void bound(std::int64_t range, std::int64_t begin, std::int64_t end);      // 2: tiles
  void choose_least();                                                       // 3
  void search(std::int64_t range, std::int64_t begin, std::int64_t end);     // 4: tiles
  // best[rows]: the index, the first of equal ones, or -1 where outputs are no finite numbers.
  void write(std::int32_t* best) const;                                      // 5

 private:
  Greatest* of_range(std::vector<Greatest>& all, std::int64_t range) {
    return all.data() + range * rows_.rows;
  }

  const RowKernels& kernels_;
  const Matrix& matrix_;
  const Rows& rows_;
  const Spread spread_;
  const std::int64_t outputs_;
  const std::int64_t ranges_;
  float* const bounds_;
  std::vector<float> of_row_, rounding_;  // [rows]
  std::vector<Greatest> tiles_;           // [ranges, rows]
  std::vector<float> least_;              // [rows]: some output is as great
  std::vector<Greatest> found_;           // [ranges, rows]
};

}  // namespace specdec::ops
