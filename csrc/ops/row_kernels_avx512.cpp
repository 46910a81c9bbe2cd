#include "isa.h"

#if defined(SPECDEC_OPS_X86)

#include <cmath>
#include <cstring>

#include "row_kernels.h"
#include "vectors_avx512.h"
// Behind vectors_avx512.h, for its instruction set:
#include "row_algorithms.h"

namespace specdec::ops {
namespace {

// How far ahead of their use weights are asked for: the memory's latency at the speed of one core.
constexpr std::int64_t kAhead = 2048;

inline void ask_for(const void* place) {
  _mm_prefetch(static_cast<const char*>(place), _MM_HINT_T0);
}

// sum + the products of four codes of a row, the same for all 16 outputs, with their weights.
inline __m512i add_dots(__m512i sum, __m512i weights, const std::int8_t* x) {
#if defined(__GNUC__) && !defined(__clang__)
  // GCC 12 never lets the product itself spread the codes: a sixth slower.
  using Word [[gnu::may_alias, gnu::aligned(1)]] = std::int32_t;
  asm("vpdpbusd %2%{1to16%}, %1, %0"
      : "+v"(sum)
      : "v"(weights), "m"(*reinterpret_cast<const Word*>(x)));
  return sum;
#else
  std::int32_t word;
  std::memcpy(&word, x, sizeof word);
  return _mm512_dpbusd_epi32(sum, weights, _mm512_set1_epi32(word));
#endif
}

// How a tile's blocks of 4 bits hold their scales: what is kept in registers for all of them, what is
// read of one, what a sum of products starts from, and how it is added.
struct HalfScales {
  static constexpr std::int64_t kWords = 2 * kTile;  // of a block
  struct OfBlock {
    __m512 scale, minimum;
  };

  explicit HalfScales(const std::uint16_t*& scales) { static_cast<void>(scales); }

  OfBlock of(const std::uint16_t* scales) const {
    return {load_halves(scales), load_halves(scales + kTile)};
  }
  static __m512i start(const TileAndGroup&, std::int64_t) { return _mm512_setzero_si512(); }
  static __m512 add(__m512 total, __m512i dot, const OfBlock& of_block, const TileAndGroup& at,
                    std::int64_t row) {
    const __m512 both = _mm512_mul_ps(_mm512_set1_ps(at.s[row]), of_block.scale);
    total = _mm512_fmadd_ps(both, _mm512_cvtepi32_ps(dot), total);
    return _mm512_fmadd_ps(of_block.minimum, _mm512_set1_ps(at.scaled_sums[row]), total);
  }
  static __m512 finish(__m512 total) { return total; }
};

// Of 6 bits by their upper four: 4 * code + 1.5 - 32, with the lower two in the middle.
struct CoarseScales : HalfScales {
  static constexpr std::int64_t kWords = kTile;
  using HalfScales::HalfScales;

  OfBlock of(const std::uint16_t* scales) const {
    const __m512 scale = load_halves(scales);
    return {_mm512_mul_ps(scale, _mm512_set1_ps(4)), _mm512_mul_ps(scale, _mm512_set1_ps(-30.5f))};
  }
};

struct ByteScales {
  static constexpr std::int64_t kWords = kTile;
  using OfBlock = __m512i;  // pairs of 16 bits: 16 * a and ratio * b

  explicit ByteScales(const std::uint16_t*& scales)
      : unit(_mm512_castsi512_ps(_mm512_slli_epi32(load_words(scales), 16))),
        ratio(load_words(scales + kTile)) {
    scales += 2 * kTile;
  }

  OfBlock of(const std::uint16_t* scales) const {
    const __m512i words = load_words(scales);
    const __m512i a = _mm512_and_si512(words, _mm512_set1_epi32(0xFF));
    const __m512i b = _mm512_srai_epi32(_mm512_slli_epi32(words, 16), 24);
    const __m512i scaled = _mm512_madd_epi16(b, ratio);
    return _mm512_or_si512(_mm512_slli_epi32(a, 4), _mm512_slli_epi32(scaled, 16));
  }
  static __m512i start(const TileAndGroup& at, std::int64_t row) {
    return _mm512_set1_epi32(at.pair_sums[row]);
  }
  // The lower halves are dots of codes - 8; with the row's sum in the upper ones it is one product.
  static __m512 add(__m512 total, __m512i dot, const OfBlock& of_block, const TileAndGroup& at,
                    std::int64_t row) {
    const __m512i sum = _mm512_set1_epi32(at.pair_sums[row]);
    const __m512i pair = _mm512_ternarylogic_epi32(dot, _mm512_set1_epi32(0xFFFF), sum, 0xE2);
    const __m512 whole = _mm512_cvtepi32_ps(_mm512_madd_epi16(pair, of_block));
    return _mm512_fmadd_ps(_mm512_set1_ps(at.s[row]), whole, total);
  }
  __m512 finish(__m512 total) const { return _mm512_mul_ps(unit, total); }

  static __m512i load_words(const std::uint16_t* scales) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales)));
  }

  __m512 unit;
  __m512i ratio;
};

template <class BlockScales, int kRows>
void product4(const TileAndGroup& at, float* sums) {
  const __m512i low_half = _mm512_set1_epi8(0x0F);
  __m512 total[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) total[r] = _mm512_setzero_ps();
  const std::uint8_t* codes = at.codes;
  const std::uint16_t* scales = at.scales;
  const BlockScales kept(scales);
  const std::int8_t* x = at.x;
  for (std::int64_t row = 0; row < at.blocks * kRows; row += kRows) {
    for (int line = 0; line < 4; ++line) ask_for(codes + kAhead + 64 * line);
    ask_for(scales + kAhead / 256 * BlockScales::kWords);
    __m512i dot[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) dot[r] = BlockScales::start(at, row + r);
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      const __m512i both = _mm512_loadu_si512(codes + 64 * g);
      const __m512i low = _mm512_and_si512(both, low_half);
      const __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), low_half);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        dot[r] = add_dots(dot[r], low, x + 32 * r + 4 * g);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        dot[r] = add_dots(dot[r], high, x + 32 * r + 16 + 4 * g);
      }
    }
    const auto of_block = kept.of(scales);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      total[r] = BlockScales::add(total[r], dot[r], of_block, at, row + r);
    }
    codes += 256;
    scales += BlockScales::kWords;
    x += kRows * kBlock;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) _mm512_storeu_ps(sums + kTile * r, kept.finish(total[r]));
}

// `passes` times `wide` blocks of 8 bits, and the others of 6.
template <int kRows>
[[gnu::always_inline]] inline void product8_and_6(const TileAndGroup& at, std::int64_t wide,
                                                  std::int64_t passes, float* sums) {
  __m512 total[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) total[r] = _mm512_setzero_ps();
  const std::uint8_t* codes = at.codes;
  const std::uint16_t* scales = at.scales;
  const std::int8_t* x = at.x;
  const float* s = at.s;
  const std::int32_t* shifted_sums = at.shifted_sums;
  const auto add = [&](const __m512i (&dot)[kRows]) __attribute__((always_inline)) {
    const __m512 scale = load_halves(scales);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512 both = _mm512_mul_ps(_mm512_set1_ps(s[r]), scale);
      total[r] = _mm512_fmadd_ps(both, _mm512_cvtepi32_ps(dot[r]), total[r]);
    }
    scales += kTile;
    x += kRows * kBlock;
    s += kRows;
    shifted_sums += kRows;
  };
  for (std::int64_t block = 0; block < passes * wide; ++block) {
    if (block == wide) {
      codes = at.codes;
      scales = at.scales;
    }
    for (int line = 0; line < 8; ++line) ask_for(codes + kAhead + 64 * line);
    ask_for(scales + kAhead / 32);
    __m512i dot[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) dot[r] = _mm512_set1_epi32(shifted_sums[r]);
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) {
      const __m512i weights = _mm512_loadu_si512(codes + 64 * g);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        dot[r] = add_dots(dot[r], weights, x + 32 * r + 4 * g);
      }
    }
    add(dot);
    codes += 512;
  }
  const __m512i upper_bits = _mm512_set1_epi8(0x3C);
  const __m512i lower_bits = _mm512_set1_epi8(0x03);
  const std::uint8_t* fine = at.fine;
  for (std::int64_t block = passes * wide; block < at.blocks; ++block) {
    for (int line = 0; line < 4; ++line) ask_for(codes + kAhead + 64 * line);
    for (int line = 0; line < 2; ++line) ask_for(fine + kAhead / 2 + 64 * line);
    ask_for(scales + kAhead / 16);
    __m512i dot[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) dot[r] = _mm512_set1_epi32(shifted_sums[r] / 4);  // -32 * sum(q)
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      const __m512i both = _mm512_loadu_si512(codes + 64 * g);
      const __m512i lower = _mm512_loadu_si512(fine + 64 * (g / 2));
      const __m512i of_low = g % 2 == 0 ? lower : _mm512_srli_epi16(lower, 4);
      const __m512i of_high = _mm512_srli_epi16(lower, g % 2 == 0 ? 2 : 6);
      // (of_... & lower_bits) | the upper bits
      const __m512i low = _mm512_ternarylogic_epi32(
          of_low, lower_bits, _mm512_and_si512(_mm512_slli_epi16(both, 2), upper_bits), 0xEA);
      const __m512i high = _mm512_ternarylogic_epi32(
          of_high, lower_bits, _mm512_and_si512(_mm512_srli_epi16(both, 2), upper_bits), 0xEA);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        dot[r] = add_dots(dot[r], low, x + 32 * r + 4 * g);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        dot[r] = add_dots(dot[r], high, x + 32 * r + 16 + 4 * g);
      }
    }
    add(dot);
    codes += 256;
    fine += 128;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) _mm512_storeu_ps(sums + kTile * r, total[r]);
}

}  // namespace
}  // namespace specdec::ops

#include "row_table.h"

namespace specdec::ops {
const RowKernels& avx512_row_kernels() { return kRowKernels; }
}  // namespace specdec::ops

SPECDEC_OPS_TARGET_END

#endif
