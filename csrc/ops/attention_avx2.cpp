#include "isa.h"

#if defined(SPECDEC_OPS_X86)

#include "attention_kernels.h"
#include "vectors_avx2.h"

// attention_plain.cpp says what these functions do.

namespace specdec::ops {
namespace {

constexpr int kScoredItems = 2;
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

}  // namespace
}  // namespace specdec::ops

#include "attention_loops.h"

namespace specdec::ops {

AttentionKernels attention_avx2() { return kKernels; }

}  // namespace specdec::ops

SPECDEC_OPS_TARGET_END

#endif
