#include "isa.h"

#if defined(SPECDEC_OPS_ARM)

#include "attention_kernels.h"
#include "vectors_neon.h"

// attention_plain.cpp says what these functions do.

namespace specdec::ops {
namespace {

constexpr int kScoredItems = 2;
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

}  // namespace
}  // namespace specdec::ops

#include "attention_loops.h"

namespace specdec::ops {

AttentionKernels attention_neon() { return kKernels; }

}  // namespace specdec::ops

SPECDEC_OPS_TARGET_END

#endif
