#include "isa.h"

#if defined(SPECDEC_OPS_X86)

#include "attention_kernels.h"
#include "vectors_avx512.h"

// attention_plain.cpp says what these functions do.

namespace specdec::ops {
namespace {

constexpr int kScoredItems = 3;
constexpr int kMixedItems = 4;
constexpr int kMixedVectors = 4;

inline __mmask16 first_lanes(int count) { return static_cast<__mmask16>((1u << count) - 1u); }
inline Floats load_part(const float* x, int count) {
  return _mm512_maskz_loadu_ps(first_lanes(count), x);
}
inline Floats keep_part(Floats x, int count, Floats y) {
  return _mm512_mask_blend_ps(first_lanes(count), y, x);
}

inline Floats fold_four(Floats a, Floats b, Floats c, Floats d) {
  const Floats ab = add(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
  const Floats cd = add(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xEE));
  return add(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
}
inline Floats fold_quarters(Floats a, Floats b, Floats c, Floats d) {
  const Floats ab = add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const Floats cd = add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  return add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
}

}  // namespace
}  // namespace specdec::ops

#include "attention_loops.h"

namespace specdec::ops {

AttentionKernels attention_avx512() { return kKernels; }

}  // namespace specdec::ops

SPECDEC_OPS_TARGET_END

#endif
