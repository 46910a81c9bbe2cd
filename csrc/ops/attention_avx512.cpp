#include "isa.h"

#if defined(SPECDEC_OPS_X86)

#include "attention_kernels.h"
#include "vectors_avx512.h"

// attention_plain.cpp says what these functions do.

namespace specdec::ops {
namespace {

constexpr int kScoredItems = 6;
constexpr int kMixedItems = 6;
constexpr int kMixedVectors = 4;

inline __mmask16 first_lanes(int count) { return static_cast<__mmask16>((1u << count) - 1u); }
inline Floats load_part(const float* x, int count) {
  return _mm512_maskz_loadu_ps(first_lanes(count), x);
}
inline Floats keep_part(Floats x, int count, Floats y) {
  return _mm512_mask_blend_ps(first_lanes(count), y, x);
}

}  // namespace
}  // namespace specdec::ops

#include "attention_loops.h"

namespace specdec::ops {

AttentionKernels attention_avx512() { return kKernels; }

}  // namespace specdec::ops

SPECDEC_OPS_TARGET_END

#endif
