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

struct ScaleAndMinimum {
  __m256 scale, minimum;
};

// How a tile's blocks of 4 bits hold their scales: what is kept in registers for all of them. Made
// with the first of 8 outputs, and left at those of its first block.
struct HalfScales {
  static constexpr std::int64_t kWords = 2 * kTile;  // of a block

  explicit HalfScales(const std::uint16_t*& scales) { static_cast<void>(scales); }

  ScaleAndMinimum of(const std::uint16_t* scales) const {
    return {eight_halves(scales), eight_halves(scales + kTile)};
  }
  __m256 finish(__m256 total) const { return total; }
};

struct ByteScales {
  static constexpr std::int64_t kWords = kTile;

  explicit ByteScales(const std::uint16_t*& scales)
      : unit(upper_halves(scales)), ratio(upper_halves(scales + kTile)) {
    scales += 2 * kTile;
  }

  ScaleAndMinimum of(const std::uint16_t* scales) const {
    const __m256i words = _mm256_cvtepi16_epi32(load_words(scales));
    const __m256i a = _mm256_and_si256(words, _mm256_set1_epi32(0xFF));
    const __m256 b = _mm256_cvtepi32_ps(_mm256_srai_epi32(words, 8));
    const __m256 middle = _mm256_cvtepi32_ps(_mm256_slli_epi32(a, 3));
    return {_mm256_cvtepi32_ps(a), _mm256_fmsub_ps(ratio, b, middle)};
  }
  __m256 finish(__m256 total) const { return _mm256_mul_ps(unit, total); }

  static __m128i load_words(const std::uint16_t* scales) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales));
  }
  static __m256 upper_halves(const std::uint16_t* scales) {
    const __m256i words = _mm256_cvtepu16_epi32(load_words(scales));
    return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
  }

  __m256 unit, ratio;
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
    const ScaleAndMinimum of_block = kept.of(scales);
#pragma GCC unroll 4
    for (int r = 0; r < kCount; ++r) {
      const std::int64_t row = block * kRows + first + r;
      const __m256 both = _mm256_mul_ps(_mm256_set1_ps(at.s[row]), of_block.scale);
      const __m256 whole = _mm256_cvtepi32_ps(_mm256_madd_epi16(dot[r], ones));
      total[r] = _mm256_fmadd_ps(both, whole, total[r]);
      total[r] = _mm256_fmadd_ps(of_block.minimum, _mm256_set1_ps(at.scaled_sums[row]), total[r]);
    }
  }
  for (int r = 0; r < kCount; ++r) {
    _mm256_storeu_ps(sums + kTile * (first + r) + kHalf * half, kept.finish(total[r]));
  }
}

template <int kRows, int kCount>
void part8(const TileAndGroup& at, int first, int half, float* sums) {
  const __m256i middle = _mm256_set1_epi8(-128);
  const __m256i ones = _mm256_set1_epi16(1);
  __m256 total[kCount];
  for (int r = 0; r < kCount; ++r) total[r] = _mm256_setzero_ps();
  for (std::int64_t block = 0; block < at.blocks; ++block) {
    const std::uint8_t* codes = at.codes + block * 512 + 32 * half;
    const std::int8_t* x = at.x + (block * kRows + first) * kBlock;
    __m256i dot[kCount];
    for (int r = 0; r < kCount; ++r) dot[r] = _mm256_setzero_si256();
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
    const __m256 scale = eight_halves(at.scales + block * kTile + kHalf * half);
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
void product8(const TileAndGroup& at, float* sums) {
  constexpr int kFirst = kRows < kAtOnce ? kRows : kAtOnce;
  for (int half = 0; half < 2; ++half) {
    part8<kRows, kFirst>(at, 0, half, sums);
    if constexpr (kRows > kAtOnce) part8<kRows, kRows - kAtOnce>(at, kAtOnce, half, sums);
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
