#include "isa.h"

#if defined(SPECDEC_OPS_ARM)

#include <cmath>

#include "row_kernels.h"
#include "vectors_neon.h"
// Behind vectors_neon.h, for its instruction set:
#include "row_algorithms.h"

namespace specdec::ops {
namespace {

constexpr int kQuarter = 4;  // outputs at once

inline float32x4_t four_halves(const std::uint16_t* x) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x)));
}

// The products of 16 inputs of one row with the weights of four outputs.
inline int32x4_t dot16(int32x4_t sum, const int8x16_t* weights, int8x16_t x) {
  sum = vdotq_laneq_s32(sum, weights[0], x, 0);
  sum = vdotq_laneq_s32(sum, weights[1], x, 1);
  sum = vdotq_laneq_s32(sum, weights[2], x, 2);
  return vdotq_laneq_s32(sum, weights[3], x, 3);
}

inline int32x4_t dot32(const int8x16_t* weights, const std::int8_t* x, std::int32_t start = 0) {
  const int32x4_t sum = dot16(vdupq_n_s32(start), weights, vld1q_s8(x));
  return dot16(sum, weights + 4, vld1q_s8(x + 16));
}

// How a tile's blocks of 4 bits hold their scales: what is kept in registers for all of them, what is
// read of one, and how the products of a row are added. Made with the first of 4 outputs, and left at
// those of its first block.
struct HalfScales {
  static constexpr std::int64_t kWords = 2 * kTile;  // of a block
  struct OfBlock {
    float32x4_t scale, minimum;
  };

  explicit HalfScales(const std::uint16_t*& scales) { static_cast<void>(scales); }

  OfBlock of(const std::uint16_t* scales) const {
    return {four_halves(scales), four_halves(scales + kTile)};
  }
  static float32x4_t add(float32x4_t total, const int8x16_t* weights, const OfBlock& of_block,
                         const TileAndGroup& at, std::int64_t row) {
    const float32x4_t both = vmulq_f32(vdupq_n_f32(at.s[row]), of_block.scale);
    total = vfmaq_f32(total, both, vcvtq_f32_s32(dot32(weights, at.x + row * kBlock)));
    return vfmaq_f32(total, of_block.minimum, vdupq_n_f32(at.scaled_sums[row]));
  }
  static float32x4_t finish(float32x4_t total) { return total; }
};

// Of 6 bits by their upper four: 4 * code + 1.5 - 32, with the lower two in the middle.
struct CoarseScales : HalfScales {
  static constexpr std::int64_t kWords = kTile;
  using HalfScales::HalfScales;

  OfBlock of(const std::uint16_t* scales) const {
    const float32x4_t scale = four_halves(scales);
    return {vmulq_n_f32(scale, 4), vmulq_n_f32(scale, -30.5f)};
  }
};

struct ByteScales {
  static constexpr std::int64_t kWords = kTile;
  struct OfBlock {
    int32x4_t scale, offset;  // 16 * a, and ratio * b
  };

  explicit ByteScales(const std::uint16_t*& scales)
      : unit(vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(scales), 16))),
        ratio(vreinterpretq_s32_u32(vmovl_u16(vld1_u16(scales + kTile)))) {
    scales += 2 * kTile;
  }

  OfBlock of(const std::uint16_t* scales) const {
    const uint16x4_t words = vld1_u16(scales);
    const uint32x4_t a = vmovl_u16(vand_u16(words, vdup_n_u16(0xFF)));
    const int32x4_t b = vshrq_n_s32(vmovl_s16(vreinterpret_s16_u16(words)), 8);
    return {vreinterpretq_s32_u32(vshlq_n_u32(a, 4)), vmulq_s32(ratio, b)};
  }
  static float32x4_t add(float32x4_t total, const int8x16_t* weights, const OfBlock& of_block,
                         const TileAndGroup& at, std::int64_t row) {
    const std::int32_t sum = at.pair_sums[row] >> 16;
    const int32x4_t dot = dot32(weights, at.x + row * kBlock, -8 * sum);
    const int32x4_t offset = vmulq_s32(of_block.offset, vdupq_n_s32(sum));
    const int32x4_t whole = vmlaq_s32(offset, of_block.scale, dot);
    return vfmaq_f32(total, vdupq_n_f32(at.s[row]), vcvtq_f32_s32(whole));
  }
  float32x4_t finish(float32x4_t total) const { return vmulq_f32(unit, total); }

  float32x4_t unit;
  int32x4_t ratio;
};

template <class BlockScales, int kRows>
void product4(const TileAndGroup& at, float* sums) {
  for (int quarter = 0; quarter < 4; ++quarter) {
    const std::uint16_t* scales = at.scales + kQuarter * quarter;
    const BlockScales kept(scales);
    float32x4_t total[kRows];
    for (int r = 0; r < kRows; ++r) total[r] = vdupq_n_f32(0);
    for (std::int64_t block = 0; block < at.blocks; ++block, scales += BlockScales::kWords) {
      const std::uint8_t* codes = at.codes + block * 256 + 16 * quarter;
      int8x16_t weights[8];
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) {
        const uint8x16_t both = vld1q_u8(codes + 64 * g);
        weights[g] = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
        weights[4 + g] = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
      }
      const auto of_block = kept.of(scales);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        total[r] = BlockScales::add(total[r], weights, of_block, at, block * kRows + r);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      vst1q_f32(sums + kTile * r + kQuarter * quarter, kept.finish(total[r]));
    }
  }
}

// A quarter of a block of 8 bits, and of 6.
inline void load_weights8(const std::uint8_t* codes, int8x16_t (&weights)[8]) {
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g) {
    weights[g] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(codes + 64 * g), vdupq_n_u8(128)));
  }
}

inline void load_weights6(const std::uint8_t* codes, const std::uint8_t* fine,
                          int8x16_t (&weights)[8]) {
  const uint8x16_t upper_bits = vdupq_n_u8(0x3C);
  const uint8x16_t lower_bits = vdupq_n_u8(0x03);
  const auto weight = [&](uint8x16_t upper, uint8x16_t lower) {
    const uint8x16_t code = vorrq_u8(vandq_u8(upper, upper_bits), vandq_u8(lower, lower_bits));
    return vsubq_s8(vreinterpretq_s8_u8(code), vdupq_n_s8(32));
  };
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    const uint8x16_t lower = vld1q_u8(fine + 64 * h);
    const uint8x16_t first = vld1q_u8(codes + 128 * h);
    const uint8x16_t second = vld1q_u8(codes + 128 * h + 64);
    weights[2 * h] = weight(vshlq_n_u8(first, 2), lower);
    weights[2 * h + 4] = weight(vshrq_n_u8(first, 2), vshrq_n_u8(lower, 2));
    weights[2 * h + 1] = weight(vshlq_n_u8(second, 2), vshrq_n_u8(lower, 4));
    weights[2 * h + 5] = weight(vshrq_n_u8(second, 2), vshrq_n_u8(lower, 6));
  }
}

// `passes` times `wide` blocks of 8 bits, and the others of 6.
template <int kRows>
void product8_and_6(const TileAndGroup& at, std::int64_t wide, std::int64_t passes, float* sums) {
  for (int quarter = 0; quarter < 4; ++quarter) {
    const std::uint8_t* codes = at.codes + 16 * quarter;
    const std::uint8_t* fine = at.fine + 16 * quarter;
    const std::uint16_t* scales = at.scales + kQuarter * quarter;
    float32x4_t total[kRows];
    for (int r = 0; r < kRows; ++r) total[r] = vdupq_n_f32(0);
    for (std::int64_t block = 0; block < at.blocks; ++block, scales += kTile) {
      int8x16_t weights[8];
      if (block == wide && passes == 2) {
        codes = at.codes + 16 * quarter;
        scales = at.scales + kQuarter * quarter;
      }
      if (block < passes * wide) {
        load_weights8(codes, weights);
        codes += 512;
      } else {
        load_weights6(codes, fine, weights);
        codes += 256;
        fine += 128;
      }
      const float32x4_t scale = four_halves(scales);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const std::int64_t row = block * kRows + r;
        const float32x4_t both = vmulq_f32(vdupq_n_f32(at.s[row]), scale);
        const float32x4_t whole = vcvtq_f32_s32(dot32(weights, at.x + row * kBlock));
        total[r] = vfmaq_f32(total[r], both, whole);
      }
    }
    for (int r = 0; r < kRows; ++r) vst1q_f32(sums + kTile * r + kQuarter * quarter, total[r]);
  }
}

}  // namespace
}  // namespace specdec::ops

#include "row_table.h"

namespace specdec::ops {
const RowKernels& neon_row_kernels() { return kRowKernels; }
}  // namespace specdec::ops

SPECDEC_OPS_TARGET_END

#endif
