#pragma once

// Sixteen floats, on AVX-512. vectors_plain.h says what the functions do. To be included last:
// everything behind it is compiled for this instruction set.

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the undefined operands of its own intrinsics for mistakes.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif

#include <cstdint>

#if defined(__clang__)
#define SPECDEC_OPS_TARGET_END _Pragma("clang attribute pop")
#pragma clang attribute push(                                                           \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni"))), \
    apply_to = function)
#else
#define SPECDEC_OPS_TARGET_END
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")
#endif

namespace specdec::ops {
namespace {

using Floats = __m512;

inline Floats all(float x) { return _mm512_set1_ps(x); }
inline Floats load(const float* x) { return _mm512_loadu_ps(x); }
inline Floats load_halves(const std::uint16_t* x) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}
// The first `count`, 1 to 16, and zeros; nothing is read behind them.
inline Floats load_halves_part(const std::uint16_t* x, int count) {
  return _mm512_cvtph_ps(
      _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1u), x));
}
inline void store_halves(Floats x, std::uint16_t* out) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                      _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store(Floats x, float* out) { _mm512_storeu_ps(out, x); }
inline void store_part(Floats x, float* out, int count) {
  _mm512_mask_storeu_ps(out, static_cast<__mmask16>((1u << count) - 1u), x);
}
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats divide(Floats a, Floats b) { return _mm512_div_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats greater(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats smaller(Floats a, Floats b) { return _mm512_min_ps(a, b); }

inline float fold_add(Floats x) {
  const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1));
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), high);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
inline bool any_at_least(Floats x, Floats least) {
  return _mm512_cmp_ps_mask(x, least, _CMP_GE_OQ) != 0;
}
inline float fold_greater(Floats x) { return _mm512_reduce_max_ps(x); }

inline float largest_magnitude(Floats a, Floats b) {
  const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
  const __m512i both = _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(a), magnitude),
                                        _mm512_and_si512(_mm512_castps_si512(b), magnitude));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(both))));
}

inline std::int32_t store_rounded(Floats a, Floats b, std::int8_t* out) {
  const __m512i least = _mm512_set1_epi32(-127);
  const __m512i most = _mm512_set1_epi32(127);
  const auto rounded = [&](Floats x) {
    return _mm512_max_epi32(_mm512_min_epi32(_mm512_cvtps_epi32(x), most), least);
  };
  const __m512i first = rounded(a);
  const __m512i second = rounded(b);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(first));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16), _mm512_cvtepi32_epi8(second));
  return _mm512_reduce_add_epi32(_mm512_add_epi32(first, second));
}

inline Floats power_of_two(Floats shifted) {
  const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(127 << 23)));
}

}  // namespace
}  // namespace specdec::ops
