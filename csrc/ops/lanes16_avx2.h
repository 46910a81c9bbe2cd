#pragma once

#include <immintrin.h>

#include <cstdint>

#include "lanes16.h"

// Sixteen floats in two registers; see lanes16.h.

#define SPECDEC_LANES_TARGET SPECDEC_TARGET("avx2,fma")
#define SPECDEC_LANE_OP SPECDEC_LANES_TARGET SPECDEC_FORCE_INLINE

namespace specdec::ops::SPECDEC_LANES {

struct Lanes {
  __m256 low, high;
};

constexpr int kVectorsAtOnce = 1;  // weighted sums that registers are left for, with kItemsAtOnce
constexpr int kItemsAtOnce = 4;

SPECDEC_LANE_OP __m256i first_lanes(std::int32_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
SPECDEC_LANE_OP Lanes load(const float* from) {
  return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
}
SPECDEC_LANE_OP void store(float* to, Lanes x) {
  _mm256_storeu_ps(to, x.low);
  _mm256_storeu_ps(to + 8, x.high);
}
SPECDEC_LANE_OP Lanes load_first(const float* from, std::int32_t n) {
  return {_mm256_maskload_ps(from, first_lanes(n)), _mm256_maskload_ps(from + 8, first_lanes(n - 8))};
}
SPECDEC_LANE_OP void store_first(float* to, Lanes x, std::int32_t n) {
  _mm256_maskstore_ps(to, first_lanes(n), x.low);
  _mm256_maskstore_ps(to + 8, first_lanes(n - 8), x.high);
}
SPECDEC_LANE_OP Lanes keep_first(Lanes x, std::int32_t n, Lanes other) {
  return {_mm256_blendv_ps(other.low, x.low, _mm256_castsi256_ps(first_lanes(n))),
          _mm256_blendv_ps(other.high, x.high, _mm256_castsi256_ps(first_lanes(n - 8)))};
}
SPECDEC_LANE_OP Lanes splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
SPECDEC_LANE_OP Lanes add(Lanes a, Lanes b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
SPECDEC_LANE_OP Lanes subtract(Lanes a, Lanes b) {
  return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
SPECDEC_LANE_OP Lanes multiply(Lanes a, Lanes b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
SPECDEC_LANE_OP Lanes divide(Lanes a, Lanes b) {
  return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
SPECDEC_LANE_OP Lanes fma(Lanes a, Lanes b, Lanes c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
SPECDEC_LANE_OP Lanes fnma(Lanes a, Lanes b, Lanes c) {
  return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}
SPECDEC_LANE_OP Lanes greater(Lanes a, Lanes b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
SPECDEC_LANE_OP Lanes zero_below(Lanes x, Lanes bound, Lanes value) {
  return {_mm256_and_ps(_mm256_cmp_ps(x.low, bound.low, _CMP_NLT_UQ), value.low),
          _mm256_and_ps(_mm256_cmp_ps(x.high, bound.high, _CMP_NLT_UQ), value.high)};
}
SPECDEC_LANE_OP __m256 scale_half_by_power(__m256 x, __m256 shifted) {
  const __m256i exponent = _mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(shifted), 23),
                                            _mm256_set1_epi32(127 << 23));
  return _mm256_mul_ps(x, _mm256_castsi256_ps(exponent));
}
SPECDEC_LANE_OP Lanes scale_by_power(Lanes x, Lanes shifted) {
  return {scale_half_by_power(x.low, shifted.low), scale_half_by_power(x.high, shifted.high)};
}
SPECDEC_LANE_OP __m256 fold2(Lanes a, Lanes b) {
  const __m256 first = _mm256_add_ps(a.low, a.high);
  const __m256 second = _mm256_add_ps(b.low, b.high);
  return _mm256_add_ps(_mm256_permute2f128_ps(first, second, 0x20),
                       _mm256_permute2f128_ps(first, second, 0x31));
}
SPECDEC_LANE_OP Lanes fold4(Lanes a, Lanes b, Lanes c, Lanes d) {
  return {fold2(a, b), fold2(c, d)};
}
SPECDEC_LANE_OP __m256 add_neighbours(__m256 a, __m256 b) {
  return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xDD));
}
SPECDEC_LANE_OP Lanes fold_quarters(Lanes a, Lanes b, Lanes c, Lanes d) {
  return {add_neighbours(add_neighbours(a.low, b.low), add_neighbours(c.low, d.low)),
          add_neighbours(add_neighbours(a.high, b.high), add_neighbours(c.high, d.high))};
}

}  // namespace specdec::ops::SPECDEC_LANES
