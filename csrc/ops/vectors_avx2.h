#pragma once

// Sixteen floats, on AVX2 with FMA. vectors_plain.h says what the functions do. To be included last:
// everything behind it is compiled for this instruction set.

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#if defined(__clang__)
#define SPECDEC_OPS_TARGET_END _Pragma("clang attribute pop")
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#define SPECDEC_OPS_TARGET_END
#pragma GCC target("avx2,fma,f16c")
#endif

namespace specdec::ops {
namespace {

struct Floats {
  __m256 low, high;
};

inline Floats all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Floats load(const float* x) { return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }
inline Floats load_halves(const std::uint16_t* x) {
  const auto* part = reinterpret_cast<const __m128i*>(x);
  return {_mm256_cvtph_ps(_mm_loadu_si128(part)), _mm256_cvtph_ps(_mm_loadu_si128(part + 1))};
}
inline Floats load_halves_part(const std::uint16_t* x, int count) {
  std::uint16_t whole[16] = {};
  std::memcpy(whole, x, static_cast<std::size_t>(count) * sizeof *x);
  return load_halves(whole);
}
inline void store_halves(Floats x, std::uint16_t* out) {
  auto* part = reinterpret_cast<__m128i*>(out);
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  _mm_storeu_si128(part, _mm256_cvtps_ph(x.low, kNearest));
  _mm_storeu_si128(part + 1, _mm256_cvtps_ph(x.high, kNearest));
}
inline void store(Floats x, float* out) {
  _mm256_storeu_ps(out, x.low);
  _mm256_storeu_ps(out + 8, x.high);
}
inline void store_part(Floats x, float* out, int count) {
  float whole[16];
  store(x, whole);
  std::memcpy(out, whole, static_cast<std::size_t>(count) * sizeof(float));
}
inline Floats add(Floats a, Floats b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline Floats subtract(Floats a, Floats b) {
  return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
inline Floats multiply(Floats a, Floats b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline Floats divide(Floats a, Floats b) {
  return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
inline Floats fma(Floats a, Floats b, Floats c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Floats greater(Floats a, Floats b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline Floats smaller(Floats a, Floats b) {
  return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}

inline float fold_add(Floats x) {
  const __m256 eight = _mm256_add_ps(x.low, x.high);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
inline bool any_at_least(Floats x, Floats least) {
  return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps(x.low, least.low, _CMP_GE_OQ),
                                         _mm256_cmp_ps(x.high, least.high, _CMP_GE_OQ))) != 0;
}
inline float fold_greater(Floats x) {
  const __m256 eight = _mm256_max_ps(x.low, x.high);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

inline float largest_magnitude(Floats a, Floats b) {
  const __m256i mask = _mm256_set1_epi32(0x7FFFFFFF);
  const auto magnitude = [&](__m256 x) { return _mm256_and_si256(_mm256_castps_si256(x), mask); };
  const __m256i eight = _mm256_max_epi32(_mm256_max_epi32(magnitude(a.low), magnitude(a.high)),
                                         _mm256_max_epi32(magnitude(b.low), magnitude(b.high)));
  __m128i four =
      _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xB1));
  return _mm_cvtss_f32(_mm_castsi128_ps(four));
}

inline std::int32_t store_rounded(Floats a, Floats b, std::int8_t* out) {
  const __m256i least = _mm256_set1_epi32(-127);
  const __m256i most = _mm256_set1_epi32(127);
  const auto rounded = [&](__m256 x) {
    return _mm256_max_epi32(_mm256_min_epi32(_mm256_cvtps_epi32(x), most), least);
  };
  const __m256i part[4] = {rounded(a.low), rounded(a.high), rounded(b.low), rounded(b.high)};
  // Packing works within the halves of a register: the last step puts their words in order.
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(part[0], part[1]),
                                           _mm256_packs_epi32(part[2], part[3]));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                      _mm256_permutevar8x32_epi32(bytes, order));
  const __m256i eight =
      _mm256_add_epi32(_mm256_add_epi32(part[0], part[1]), _mm256_add_epi32(part[2], part[3]));
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1));
  return _mm_cvtsi128_si32(four);
}

inline Floats power_of_two(Floats shifted) {
  const __m256i bias = _mm256_set1_epi32(127 << 23);
  const auto power = [&](__m256 x) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(x), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(exponent, bias));
  };
  return {power(shifted.low), power(shifted.high)};
}

}  // namespace
}  // namespace specdec::ops
