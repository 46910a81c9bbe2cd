#include "greatest_output.h"

#include <cmath>

namespace specdec::ops {

GreatestOutput::GreatestOutput(const RowKernels& kernels, const Matrix& matrix, const Rows& rows,
                               const Spread& spread, std::int64_t outputs, std::int64_t ranges,
                               float* bounds)
    : kernels_(kernels),
      matrix_(matrix),
      rows_(rows),
      spread_(spread),
      outputs_(outputs),
      ranges_(ranges),
      bounds_(rows.rows > kMostRows ? nullptr : bounds),
      of_row_(static_cast<std::size_t>(rows.rows)),
      rounding_(of_row_.size()),
      tiles_(static_cast<std::size_t>(ranges * rows.rows)),
      least_(of_row_.size(), -HUGE_VALF),
      found_(tiles_.size()) {}

void GreatestOutput::measure(std::int64_t row) {
  std::int64_t group = 0;
  while (rows_.first(group + 1) <= row) ++group;
  const std::int64_t first = rows_.first(group);
  const std::int64_t count = rows_.first(group + 1) - first;
  double wide = 0;  // squares
  double others = 0;
  for (std::int64_t block = 0; block < rows_.blocks; ++block) {
    const std::int64_t at = first * rows_.blocks + block * count + (row - first);
    const std::int8_t* const codes = rows_.codes + at * kBlock;
    std::int32_t sum = 0;
    for (std::int64_t i = 0; i < kBlock; ++i) sum += codes[i] * codes[i];
    const double square = double{rows_.scales[at]} * rows_.scales[at] * sum;
    (block < 2 * matrix_.wide ? wide : others) += square;
  }
  // Two sums, the exact one and the other, of one and of two products for each block, each rounded a few
  // times; the magnitudes of either's add up to no more than the norms' product. Three times as much as
  // that comes to.
  constexpr double kUnit = 1.0 / (1 << 24);
  const double steps = static_cast<double>(5 * rows_.blocks + 20);
  const auto at = static_cast<std::size_t>(row);
  of_row_[at] = static_cast<float>(std::sqrt(others) * (1 + 1e-5));
  rounding_[at] =
      static_cast<float>(2 * steps * kUnit * std::sqrt(wide + others) * double{spread_.size});
}

void GreatestOutput::bound(std::int64_t range, std::int64_t begin, std::int64_t end) {
  const Slack slack{spread_.of_output, of_row_.data(), rounding_.data()};
  kernels_.bound(matrix_, rows_, slack, begin, end, outputs_, bounds_, of_range(tiles_, range));
}

void GreatestOutput::choose_least() {
  Greatest* const found = of_range(found_, 0);
  for (std::int64_t row = 0; row < rows_.rows; ++row) {
    Greatest near;
    for (std::int64_t range = 0; range < ranges_; ++range) {
      const Greatest& of_range = tiles_[static_cast<std::size_t>(range * rows_.rows + row)];
      if (of_range.value > near.value) near = of_range;
    }
    if (near.at < 0) continue;
    // All of the tile, for all rows, as least_ is still below everything.
    kernels_.search(matrix_, rows_, near.at, near.at + 1, outputs_, bounds_, least_.data(), found);
  }
  for (std::size_t row = 0; row < least_.size(); ++row) least_[row] = found[row].value;
}

void GreatestOutput::search(std::int64_t range, std::int64_t begin, std::int64_t end) {
  kernels_.search(matrix_, rows_, begin, end, outputs_, bounds_, least_.data(),
                  of_range(found_, range));
}

void GreatestOutput::write(std::int32_t* best) const {
  for (std::int64_t row = 0; row < rows_.rows; ++row) {
    Greatest all;
    for (std::int64_t range = 0; range < ranges_; ++range) {
      const Greatest& found = found_[static_cast<std::size_t>(range * rows_.rows + row)];
      const bool first = found.value == all.value && found.at < all.at;
      if (found.value > all.value || first) all = found;
    }
    best[row] = std::isfinite(all.value) ? static_cast<std::int32_t>(all.at) : -1;
  }
}

}  // namespace specdec::ops
