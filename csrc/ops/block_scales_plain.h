#pragma once

// How a tile's blocks of 4 bits hold their scales, one output at a time. To be included behind
// vectors_plain.h.

#include <cmath>

#include "row_kernels.h"

namespace specdec::ops {
namespace {

struct ScaleAndMinimum {
  float scale, minimum;
};

// Both are made with the first of a tile's scales, and move it to those of its first block. What
// `finish` gives for a sum of weights is the sum.
struct HalfScales {
  static constexpr std::int64_t kWords = 2 * kTile;  // of a block

  explicit HalfScales(const std::uint16_t*& scales) { static_cast<void>(scales); }

  ScaleAndMinimum of(const std::uint16_t* scales, int c) const {
    return {float_of_half(scales[c]), float_of_half(scales[kTile + c])};
  }
  float finish(float total, int) const { return total; }
};

struct ByteScales {
  static constexpr std::int64_t kWords = kTile;

  explicit ByteScales(const std::uint16_t*& scales) : units(scales), ratios(scales + kTile) {
    scales += 2 * kTile;
  }

  ScaleAndMinimum of(const std::uint16_t* scales, int c) const {
    const auto scale = static_cast<float>(scales[c] & 0xFF);
    const auto b = static_cast<float>(static_cast<std::int8_t>(scales[c] >> 8));
    return {scale, std::fma(upper_half(ratios[c]), b, -8 * scale)};
  }
  float finish(float total, int c) const { return upper_half(units[c]) * total; }

  static float upper_half(std::uint16_t x) { return float_of(std::uint32_t{x} << 16); }

  const std::uint16_t* units;
  const std::uint16_t* ratios;
};

}  // namespace
}  // namespace specdec::ops
