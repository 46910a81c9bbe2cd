#include "isa.h"

#if defined(SPECDEC_OPS_ARM)

#include "attention_kernels.h"
#include "vectors_neon.h"

// attention_plain.cpp says what these functions do.

namespace specdec::ops {
namespace {

constexpr int kScoredItems = 1;
constexpr int kMixedItems = 4;
constexpr int kMixedVectors = 1;

inline Floats load_part(const float* x, int count) {
  float whole[16] = {};
  std::memcpy(whole, x, static_cast<std::size_t>(count) * sizeof(float));
  return load(whole);
}
inline Floats keep_part(Floats x, int count, Floats y) {
  float whole[16];
  store(y, whole);
  store_part(x, whole, count);
  return load(whole);
}

inline float32x4_t fold(Floats x) {
  return vaddq_f32(vaddq_f32(x.part[0], x.part[2]), vaddq_f32(x.part[1], x.part[3]));
}
inline Floats fold_four(Floats a, Floats b, Floats c, Floats d) {
  return {{fold(a), fold(b), fold(c), fold(d)}};
}
inline float32x4_t fold_halves(float32x4_t a, float32x4_t b, float32x4_t c, float32x4_t d) {
  const float32x4_t ab = vaddq_f32(vzip1q_f32(a, b), vzip2q_f32(a, b));
  const float32x4_t cd = vaddq_f32(vzip1q_f32(c, d), vzip2q_f32(c, d));
  return vaddq_f32(vcombine_f32(vget_low_f32(ab), vget_low_f32(cd)),
                   vcombine_f32(vget_high_f32(ab), vget_high_f32(cd)));
}
inline Floats fold_quarters(Floats a, Floats b, Floats c, Floats d) {
  return by_parts(
      [&](int i) { return fold_halves(a.part[i], b.part[i], c.part[i], d.part[i]); });
}

}  // namespace
}  // namespace specdec::ops

#include "attention_loops.h"

namespace specdec::ops {

AttentionKernels attention_neon() { return kKernels; }

}  // namespace specdec::ops

SPECDEC_OPS_TARGET_END

#endif
