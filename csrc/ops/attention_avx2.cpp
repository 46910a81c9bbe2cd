#include "isa.h"

#if defined(SPECDEC_OPS_X86)

#include "attention_kernels.h"
#include "vectors_avx2.h"

// attention_plain.cpp says what these functions do.

namespace specdec::ops {
namespace {

constexpr int kScoredItems = 1;
constexpr int kMixedItems = 4;
constexpr int kMixedVectors = 1;

inline __m256i first_lanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Floats load_part(const float* x, int count) {
  return {_mm256_maskload_ps(x, first_lanes(count)),
          _mm256_maskload_ps(x + 8, first_lanes(count - 8))};
}
inline Floats keep_part(Floats x, int count, Floats y) {
  return {_mm256_blendv_ps(y.low, x.low, _mm256_castsi256_ps(first_lanes(count))),
          _mm256_blendv_ps(y.high, x.high, _mm256_castsi256_ps(first_lanes(count - 8)))};
}

inline __m256 fold_two(Floats a, Floats b) {
  const __m256 first = _mm256_add_ps(a.low, a.high);
  const __m256 second = _mm256_add_ps(b.low, b.high);
  return _mm256_add_ps(_mm256_permute2f128_ps(first, second, 0x20),
                       _mm256_permute2f128_ps(first, second, 0x31));
}
inline Floats fold_four(Floats a, Floats b, Floats c, Floats d) {
  return {fold_two(a, b), fold_two(c, d)};
}
inline __m256 fold_halves(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
  return _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xEE));
}
inline Floats fold_quarters(Floats a, Floats b, Floats c, Floats d) {
  return {fold_halves(a.low, b.low, c.low, d.low), fold_halves(a.high, b.high, c.high, d.high)};
}

}  // namespace
}  // namespace specdec::ops

#include "attention_loops.h"

namespace specdec::ops {

AttentionKernels attention_avx2() { return kKernels; }

}  // namespace specdec::ops

SPECDEC_OPS_TARGET_END

#endif
