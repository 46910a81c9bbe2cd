#pragma once

// How a tile's blocks of 4 bits hold their scales, one output at a time. To be included behind
// vectors_plain.h.

#include <cmath>

#include "row_kernels.h"

namespace specdec::ops {
namespace {

// Both are made with the first of a tile's scales, and move it to those of its first block. c: which of
// the tile's outputs.
struct HalfScales {
  static constexpr std::int64_t kWords = 2 * kTile;  // of a block
  struct OfBlock {
    float scale, minimum;
  };

  explicit HalfScales(const std::uint16_t*& scales) { static_cast<void>(scales); }

  static OfBlock of(const std::uint16_t* scales, int c) {
    return {float_of_half(scales[c]), float_of_half(scales[kTile + c])};
  }
  static float weight(const OfBlock& of_block, int code, int) {
    return of_block.scale * static_cast<float>(code) + of_block.minimum;
  }
  // A row of step s, with the sum of its codes, and of their products with the weights' codes.
  static float add(float total, const OfBlock& of_block, float s, std::int32_t sum,
                   std::int32_t dot) {
    total = std::fma(s * of_block.scale, static_cast<float>(dot), total);
    return std::fma(of_block.minimum, s * static_cast<float>(sum), total);
  }
  static float finish(float total, int) { return total; }
};

// Of 6 bits by their upper four: 4 * code + 1.5 - 32, with the lower two in the middle.
struct CoarseScales : HalfScales {
  static constexpr std::int64_t kWords = kTile;
  using HalfScales::HalfScales;

  static OfBlock of(const std::uint16_t* scales, int c) {
    const float scale = float_of_half(scales[c]);
    return {4 * scale, -30.5f * scale};
  }
};

struct ByteScales {
  static constexpr std::int64_t kWords = kTile;
  struct OfBlock {
    std::int32_t scale, offset;  // 16 * a, and ratio * b
  };

  explicit ByteScales(const std::uint16_t*& scales) : units(scales), ratios(scales + kTile) {
    scales += 2 * kTile;
  }

  OfBlock of(const std::uint16_t* scales, int c) const {
    return {16 * (scales[c] & 0xFF), ratios[c] * static_cast<std::int8_t>(scales[c] >> 8)};
  }
  float weight(const OfBlock& of_block, int code, int c) const {
    return finish(static_cast<float>(of_block.scale * (code - 8) + of_block.offset), c);
  }
  static float add(float total, const OfBlock& of_block, float s, std::int32_t sum,
                   std::int32_t dot) {
    const std::int32_t whole = of_block.scale * (dot - 8 * sum) + of_block.offset * sum;
    return std::fma(s, static_cast<float>(whole), total);
  }
  float finish(float total, int c) const { return float_of(std::uint32_t{units[c]} << 16) * total; }

  const std::uint16_t* units;
  const std::uint16_t* ratios;
};

}  // namespace
}  // namespace specdec::ops
