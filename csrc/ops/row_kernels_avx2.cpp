#include "isa.h"

#if defined(SPECDEC_OPS_X86)

#include <cmath>
#include <cstring>

#include "row_kernels.h"
#include "vectors_avx2.h"
// Behind vectors_avx2.h, for its instruction set:
#include "row_algorithms.h"

namespace specdec::ops {
namespace {

constexpr std::int64_t kHalf = 8;  // outputs at once
constexpr int kAtOnce = 4;         // rows at once: their sums fill the registers

inline __m256i four_codes(const std::int8_t* x) {  // of one row, for each of the 8 outputs
  std::int32_t word;
  std::memcpy(&word, x, sizeof word);
  return _mm256_set1_epi32(word);
}

inline __m256 eight_halves(const std::uint16_t* x) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
}

inline __m256i load_codes(const std::uint8_t* codes) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
}

// How a tile's blocks of 4 bits hold their scales: what is kept in registers for all of them, what is
// read of one, and how a sum of products is added. Made with the first of 8 outputs, and left at those
// of its first block.
struct HalfScales {
  static constexpr std::int64_t kWords = 2 * kTile;  // of a block
  struct OfBlock {
    __m256 scale, minimum;
  };

  explicit HalfScales(const std::uint16_t*& scales) { static_cast<void>(scales); }

  OfBlock of(const std::uint16_t* scales) const {
    return {eight_halves(scales), eight_halves(scales + kTile)};
  }
  static __m256 add(__m256 total, __m256i dot, const OfBlock& of_block, const TileAndGroup& at,
                    std::int64_t row) {
    const __m256 both = _mm256_mul_ps(_mm256_set1_ps(at.s[row]), of_block.scale);
    total = _mm256_fmadd_ps(both, _mm256_cvtepi32_ps(dot), total);
    return _mm256_fmadd_ps(of_block.minimum, _mm256_set1_ps(at.scaled_sums[row]), total);
  }
  static __m256 finish(__m256 total) { return total; }
};

// Of 6 bits by their upper four: 4 * code + 1.5 - 32, with the lower two in the middle.
struct CoarseScales : HalfScales {
  static constexpr std::int64_t kWords = kTile;
  using HalfScales::HalfScales;

  OfBlock of(const std::uint16_t* scales) const {
    const __m256 scale = eight_halves(scales);
    return {_mm256_mul_ps(scale, _mm256_set1_ps(4)), _mm256_mul_ps(scale, _mm256_set1_ps(-30.5f))};
  }
};

struct ByteScales {
  static constexpr std::int64_t kWords = kTile;
  using OfBlock = __m256i;  // pairs of 16 bits: 16 * a and ratio * b

  explicit ByteScales(const std::uint16_t*& scales)
      : unit(_mm256_castsi256_ps(_mm256_slli_epi32(load_words(scales), 16))),
        ratio(load_words(scales + kTile)) {
    scales += 2 * kTile;
  }

  OfBlock of(const std::uint16_t* scales) const {
    const __m256i words = load_words(scales);
    const __m256i a = _mm256_and_si256(words, _mm256_set1_epi32(0xFF));
    const __m256i b = _mm256_srai_epi32(_mm256_slli_epi32(words, 16), 24);
    const __m256i scaled = _mm256_madd_epi16(b, ratio);
    return _mm256_or_si256(_mm256_slli_epi32(a, 4), _mm256_slli_epi32(scaled, 16));
  }
  // The dot of codes - 8 in the lower halves, the row's sum in the upper ones: it is one product.
  static __m256 add(__m256 total, __m256i dot, const OfBlock& of_block, const TileAndGroup& at,
                    std::int64_t row) {
    const __m256i sum = _mm256_set1_epi32(at.pair_sums[row]);
    const __m256i pair = _mm256_blend_epi16(_mm256_add_epi32(dot, sum), sum, 0xAA);
    const __m256 whole = _mm256_cvtepi32_ps(_mm256_madd_epi16(pair, of_block));
    return _mm256_fmadd_ps(_mm256_set1_ps(at.s[row]), whole, total);
  }
  __m256 finish(__m256 total) const { return _mm256_mul_ps(unit, total); }

  static __m256i load_words(const std::uint16_t* scales) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
  }

  __m256 unit;
  __m256i ratio;
};

// Rows `first` to first + kCount of kRows, outputs 8 * half to 8 * half + 7.
template <class BlockScales, int kRows, int kCount>
void part4(const TileAndGroup& at, int first, int half, float* sums) {
  const __m256i low_half = _mm256_set1_epi8(0x0F);
  const __m256i ones = _mm256_set1_epi16(1);
  const std::uint16_t* scales = at.scales + kHalf * half;
  const BlockScales kept(scales);
  __m256 total[kCount];
  for (int r = 0; r < kCount; ++r) total[r] = _mm256_setzero_ps();
  for (std::int64_t block = 0; block < at.blocks; ++block, scales += BlockScales::kWords) {
    const std::uint8_t* codes = at.codes + block * 256 + 32 * half;
    const std::int8_t* x = at.x + (block * kRows + first) * kBlock;
    // 16 products of 15 * 127 in each 16-bit sum at most: it cannot overflow.
    __m256i dot[kCount];
    for (int r = 0; r < kCount; ++r) dot[r] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      const __m256i both = load_codes(codes + 64 * g);
      const __m256i low = _mm256_and_si256(both, low_half);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), low_half);
#pragma GCC unroll 4
      for (int r = 0; r < kCount; ++r) {
        const std::int8_t* row = x + 32 * r + 4 * g;
        dot[r] = _mm256_add_epi16(dot[r], _mm256_maddubs_epi16(low, four_codes(row)));
        dot[r] = _mm256_add_epi16(dot[r], _mm256_maddubs_epi16(high, four_codes(row + 16)));
      }
    }
    const auto of_block = kept.of(scales);
#pragma GCC unroll 4
    for (int r = 0; r < kCount; ++r) {
      const __m256i whole = _mm256_madd_epi16(dot[r], ones);
      total[r] = BlockScales::add(total[r], whole, of_block, at, block * kRows + first + r);
    }
  }
  for (int r = 0; r < kCount; ++r) {
    _mm256_storeu_ps(sums + kTile * (first + r) + kHalf * half, kept.finish(total[r]));
  }
}

// What half a block's codes of 8 bits add to the dots of some rows.
template <int kCount>
inline void add_dots8(const std::uint8_t* codes, const std::int8_t* x, __m256i (&dot)[kCount]) {
  const __m256i middle = _mm256_set1_epi8(-128);
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g) {
    // |weight| * (x with the weight's sign): two such products are 2 * 128 * 127 at most, which 16
    // bits hold; 255 * 127 + 255 * 127 they would not.
    const __m256i weights = _mm256_xor_si256(load_codes(codes + 64 * g), middle);
    const __m256i magnitude = _mm256_abs_epi8(weights);
#pragma GCC unroll 4
    for (int r = 0; r < kCount; ++r) {
      const __m256i row = _mm256_sign_epi8(four_codes(x + 32 * r + 4 * g), weights);
      const __m256i pairs = _mm256_maddubs_epi16(magnitude, row);
      dot[r] = _mm256_add_epi32(dot[r], _mm256_madd_epi16(pairs, ones));
    }
  }
}

// The same of 6 bits, by codes of 0 to 63.
template <int kCount>
inline void add_dots6(const std::uint8_t* codes, const std::uint8_t* fine, const std::int8_t* x,
                      __m256i (&dot)[kCount]) {
  const __m256i upper_bits = _mm256_set1_epi8(0x3C);
  const __m256i lower_bits = _mm256_set1_epi8(0x03);
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
    const __m256i both = load_codes(codes + 64 * g);
    const __m256i lower = load_codes(fine + 64 * (g / 2));
    const __m256i of_low = g % 2 == 0 ? lower : _mm256_srli_epi16(lower, 4);
    const __m256i of_high = _mm256_srli_epi16(lower, g % 2 == 0 ? 2 : 6);
    const __m256i low =
        _mm256_or_si256(_mm256_and_si256(_mm256_slli_epi16(both, 2), upper_bits),
                        _mm256_and_si256(of_low, lower_bits));
    const __m256i high =
        _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(both, 2), upper_bits),
                        _mm256_and_si256(of_high, lower_bits));
#pragma GCC unroll 4
    for (int r = 0; r < kCount; ++r) {
      // Four products of 63 * 127 at most, which 16 bits hold.
      const std::int8_t* row = x + 32 * r + 4 * g;
      const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(low, four_codes(row)),
                                             _mm256_maddubs_epi16(high, four_codes(row + 16)));
      dot[r] = _mm256_add_epi32(dot[r], _mm256_madd_epi16(pairs, ones));
    }
  }
}

// `passes` times `wide` blocks of 8 bits, and the others of 6.
template <int kRows, int kCount>
void part8_and_6(const TileAndGroup& at, std::int64_t wide, std::int64_t passes, int first, int half,
                 float* sums) {
  const std::uint8_t* codes = at.codes + 32 * half;
  const std::uint8_t* fine = at.fine + 32 * half;
  const std::uint16_t* scales = at.scales + kHalf * half;
  __m256 total[kCount];
  for (int r = 0; r < kCount; ++r) total[r] = _mm256_setzero_ps();
  for (std::int64_t block = 0; block < at.blocks; ++block, scales += kTile) {
    const std::int8_t* x = at.x + (block * kRows + first) * kBlock;
    __m256i dot[kCount];
    if (block == wide && passes == 2) {
      codes = at.codes + 32 * half;
      scales = at.scales + kHalf * half;
    }
    if (block < passes * wide) {
      for (int r = 0; r < kCount; ++r) dot[r] = _mm256_setzero_si256();
      add_dots8(codes, x, dot);
      codes += 512;
    } else {
      for (int r = 0; r < kCount; ++r) {
        // -32 * sum(q)
        dot[r] = _mm256_set1_epi32(at.shifted_sums[block * kRows + first + r] / 4);
      }
      add_dots6(codes, fine, x, dot);
      codes += 256;
      fine += 128;
    }
    const __m256 scale = eight_halves(scales);
#pragma GCC unroll 4
    for (int r = 0; r < kCount; ++r) {
      const __m256 both = _mm256_mul_ps(_mm256_set1_ps(at.s[block * kRows + first + r]), scale);
      total[r] = _mm256_fmadd_ps(both, _mm256_cvtepi32_ps(dot[r]), total[r]);
    }
  }
  for (int r = 0; r < kCount; ++r) {
    _mm256_storeu_ps(sums + kTile * (first + r) + kHalf * half, total[r]);
  }
}

template <class BlockScales, int kRows>
void product4(const TileAndGroup& at, float* sums) {
  constexpr int kFirst = kRows < kAtOnce ? kRows : kAtOnce;
  for (int half = 0; half < 2; ++half) {
    part4<BlockScales, kRows, kFirst>(at, 0, half, sums);
    if constexpr (kRows > kAtOnce) part4<BlockScales, kRows, kRows - kAtOnce>(at, kAtOnce, half, sums);
  }
}

template <int kRows>
void product8_and_6(const TileAndGroup& at, std::int64_t wide, std::int64_t passes, float* sums) {
  constexpr int kFirst = kRows < kAtOnce ? kRows : kAtOnce;
  for (int half = 0; half < 2; ++half) {
    part8_and_6<kRows, kFirst>(at, wide, passes, 0, half, sums);
    if constexpr (kRows > kAtOnce) {
      part8_and_6<kRows, kRows - kAtOnce>(at, wide, passes, kAtOnce, half, sums);
    }
  }
}

}  // namespace
}  // namespace specdec::ops

#include "row_table.h"

namespace specdec::ops {
const RowKernels& avx2_row_kernels() { return kRowKernels; }
}  // namespace specdec::ops

SPECDEC_OPS_TARGET_END

#endif
