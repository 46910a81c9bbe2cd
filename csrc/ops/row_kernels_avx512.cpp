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

struct ScaleAndMinimum {
  __m512 scale, minimum;
};

// How a tile's blocks of 4 bits hold their scales: what is kept in registers for all of them.
struct HalfScales {
  static constexpr std::int64_t kWords = 2 * kTile;  // of a block

  explicit HalfScales(const std::uint16_t*& scales) { static_cast<void>(scales); }

  ScaleAndMinimum of(const std::uint16_t* scales) const {
    return {load_halves(scales), load_halves(scales + kTile)};
  }
  __m512 finish(__m512 total) const { return total; }
};

struct ByteScales {
  static constexpr std::int64_t kWords = kTile;

  explicit ByteScales(const std::uint16_t*& scales)
      : unit(upper_halves(scales)), ratio(upper_halves(scales + kTile)) {
    scales += 2 * kTile;
  }

  ScaleAndMinimum of(const std::uint16_t* scales) const {
    const __m512i words = _mm512_cvtepi16_epi32(load_words(scales));
    const __m512i a = _mm512_and_si512(words, _mm512_set1_epi32(0xFF));
    const __m512 b = _mm512_cvtepi32_ps(_mm512_srai_epi32(words, 8));
    const __m512 middle = _mm512_cvtepi32_ps(_mm512_slli_epi32(a, 3));
    return {_mm512_cvtepi32_ps(a), _mm512_fmsub_ps(ratio, b, middle)};
  }
  __m512 finish(__m512 total) const { return _mm512_mul_ps(unit, total); }

  static __m256i load_words(const std::uint16_t* scales) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales));
  }
  static __m512 upper_halves(const std::uint16_t* scales) {
    const __m512i words = _mm512_cvtepu16_epi32(load_words(scales));
    return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
  }

  __m512 unit, ratio;
};

template <class BlockScales, int kRows>
void product4(const TileAndGroup& at, float* sums) {
  const __m512i low_half = _mm512_set1_epi8(0x0F);
  __m512 total[kRows];
  for (int r = 0; r < kRows; ++r) total[r] = _mm512_setzero_ps();
  const std::uint8_t* codes = at.codes;
  const std::uint16_t* scales = at.scales;
  const BlockScales kept(scales);
  const std::int8_t* x = at.x;
  const float* s = at.s;
  const float* scaled_sums = at.scaled_sums;
  for (std::int64_t block = 0; block < at.blocks; ++block) {
    for (int line = 0; line < 4; ++line) ask_for(codes + kAhead + 64 * line);
    ask_for(scales + kAhead / 256 * BlockScales::kWords);
    __m512i dot[kRows];
    for (int r = 0; r < kRows; ++r) dot[r] = _mm512_setzero_si512();
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
    const ScaleAndMinimum of_block = kept.of(scales);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512 both = _mm512_mul_ps(_mm512_set1_ps(s[r]), of_block.scale);
      total[r] = _mm512_fmadd_ps(both, _mm512_cvtepi32_ps(dot[r]), total[r]);
      total[r] =
          _mm512_fmadd_ps(of_block.minimum, _mm512_set1_ps(scaled_sums[r]), total[r]);
    }
    codes += 256;
    scales += BlockScales::kWords;
    x += kRows * kBlock;
    s += kRows;
    scaled_sums += kRows;
  }
  for (int r = 0; r < kRows; ++r) _mm512_storeu_ps(sums + kTile * r, kept.finish(total[r]));
}

template <int kRows>
void product8(const TileAndGroup& at, float* sums) {
  __m512 total[kRows];
  for (int r = 0; r < kRows; ++r) total[r] = _mm512_setzero_ps();
  const std::uint8_t* codes = at.codes;
  const std::uint16_t* scales = at.scales;
  const std::int8_t* x = at.x;
  const float* s = at.s;
  const std::int32_t* shifted_sums = at.shifted_sums;
  for (std::int64_t block = 0; block < at.blocks; ++block) {
    for (int line = 0; line < 8; ++line) ask_for(codes + kAhead + 64 * line);
    ask_for(scales + kAhead / 32);
    __m512i dot[kRows];
    for (int r = 0; r < kRows; ++r) dot[r] = _mm512_set1_epi32(shifted_sums[r]);
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) {
      const __m512i weights = _mm512_loadu_si512(codes + 64 * g);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        dot[r] = add_dots(dot[r], weights, x + 32 * r + 4 * g);
      }
    }
    const __m512 scale = load_halves(scales);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512 both = _mm512_mul_ps(_mm512_set1_ps(s[r]), scale);
      total[r] = _mm512_fmadd_ps(both, _mm512_cvtepi32_ps(dot[r]), total[r]);
    }
    codes += 512;
    scales += kTile;
    x += kRows * kBlock;
    s += kRows;
    shifted_sums += kRows;
  }
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
