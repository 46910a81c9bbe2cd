#pragma once

#include <immintrin.h>

#include <cstdint>

#include "lanes16.h"

// Sixteen floats in one register; see lanes16.h.

#define SPECDEC_LANES_TARGET SPECDEC_TARGET("avx512f")
#define SPECDEC_LANE_OP SPECDEC_LANES_TARGET SPECDEC_FORCE_INLINE

namespace specdec::ops::SPECDEC_LANES {

using Lanes = __m512;

constexpr int kVectorsAtOnce = 4;  // weighted sums that registers are left for, with kItemsAtOnce
constexpr int kItemsAtOnce = 4;

SPECDEC_LANE_OP Lanes load(const float* from) { return _mm512_loadu_ps(from); }
SPECDEC_LANE_OP void store(float* to, Lanes x) { _mm512_storeu_ps(to, x); }
SPECDEC_LANE_OP Lanes load_first(const float* from, std::int32_t n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), from);
}
SPECDEC_LANE_OP void store_first(float* to, Lanes x, std::int32_t n) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << n) - 1u), x);
}
SPECDEC_LANE_OP Lanes keep_first(Lanes x, std::int32_t n, Lanes other) {
  return _mm512_mask_blend_ps(static_cast<__mmask16>((1u << n) - 1u), other, x);
}
SPECDEC_LANE_OP Lanes splat(float x) { return _mm512_set1_ps(x); }
SPECDEC_LANE_OP Lanes add(Lanes a, Lanes b) { return _mm512_add_ps(a, b); }
SPECDEC_LANE_OP Lanes subtract(Lanes a, Lanes b) { return _mm512_sub_ps(a, b); }
SPECDEC_LANE_OP Lanes multiply(Lanes a, Lanes b) { return _mm512_mul_ps(a, b); }
SPECDEC_LANE_OP Lanes divide(Lanes a, Lanes b) { return _mm512_div_ps(a, b); }
SPECDEC_LANE_OP Lanes fma(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_ps(a, b, c); }
SPECDEC_LANE_OP Lanes fnma(Lanes a, Lanes b, Lanes c) { return _mm512_fnmadd_ps(a, b, c); }
SPECDEC_LANE_OP Lanes greater(Lanes a, Lanes b) { return _mm512_max_ps(a, b); }
SPECDEC_LANE_OP Lanes zero_below(Lanes x, Lanes bound, Lanes value) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, bound, _CMP_NLT_UQ), value);
}
SPECDEC_LANE_OP Lanes scale_by_power(Lanes x, Lanes shifted) {
  const __m512i exponent = _mm512_add_epi32(_mm512_slli_epi32(_mm512_castps_si512(shifted), 23),
                                            _mm512_set1_epi32(127 << 23));
  return _mm512_mul_ps(x, _mm512_castsi512_ps(exponent));
}
SPECDEC_LANE_OP Lanes fold4(Lanes a, Lanes b, Lanes c, Lanes d) {
  const Lanes ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
  const Lanes cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xEE));
  return _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
}
SPECDEC_LANE_OP Lanes fold_quarters(Lanes a, Lanes b, Lanes c, Lanes d) {
  const Lanes ab = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xDD));
  const Lanes cd = _mm512_add_ps(_mm512_shuffle_ps(c, d, 0x88), _mm512_shuffle_ps(c, d, 0xDD));
  return _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x88), _mm512_shuffle_ps(ab, cd, 0xDD));
}

}  // namespace specdec::ops::SPECDEC_LANES
