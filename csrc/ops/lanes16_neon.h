#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "lanes16.h"

// Sixteen floats in four registers; see lanes16.h.

#define SPECDEC_LANES_TARGET
#define SPECDEC_LANE_OP SPECDEC_FORCE_INLINE

namespace specdec::ops::SPECDEC_LANES {

struct Lanes {
  float32x4_t part[4];
};

constexpr int kVectorsAtOnce = 1;  // weighted sums that registers are left for, with kItemsAtOnce
constexpr int kItemsAtOnce = 4;

#define SPECDEC_EACH_PART(value)                   \
  Lanes result;                                    \
  for (int i = 0; i < 4; ++i) {                    \
    result.part[i] = value;                        \
  }                                                \
  return result

SPECDEC_LANE_OP Lanes load(const float* from) { SPECDEC_EACH_PART(vld1q_f32(from + 4 * i)); }
SPECDEC_LANE_OP void store(float* to, Lanes x) {
  for (int i = 0; i < 4; ++i) vst1q_f32(to + 4 * i, x.part[i]);
}
SPECDEC_LANE_OP Lanes load_first(const float* from, std::int32_t n) {
  float lane[16] = {};
  std::memcpy(lane, from, static_cast<std::size_t>(n) * sizeof(float));
  return load(lane);
}
SPECDEC_LANE_OP void store_first(float* to, Lanes x, std::int32_t n) {
  float lane[16];
  store(lane, x);
  std::memcpy(to, lane, static_cast<std::size_t>(n) * sizeof(float));
}
SPECDEC_LANE_OP Lanes keep_first(Lanes x, std::int32_t n, Lanes other) {
  float lane[16];
  store(lane, other);
  float kept[16];
  store(kept, x);
  std::memcpy(lane, kept, static_cast<std::size_t>(n) * sizeof(float));
  return load(lane);
}
SPECDEC_LANE_OP Lanes splat(float x) { SPECDEC_EACH_PART(vdupq_n_f32(x)); }
SPECDEC_LANE_OP Lanes add(Lanes a, Lanes b) { SPECDEC_EACH_PART(vaddq_f32(a.part[i], b.part[i])); }
SPECDEC_LANE_OP Lanes subtract(Lanes a, Lanes b) {
  SPECDEC_EACH_PART(vsubq_f32(a.part[i], b.part[i]));
}
SPECDEC_LANE_OP Lanes multiply(Lanes a, Lanes b) {
  SPECDEC_EACH_PART(vmulq_f32(a.part[i], b.part[i]));
}
SPECDEC_LANE_OP Lanes divide(Lanes a, Lanes b) {
  SPECDEC_EACH_PART(vdivq_f32(a.part[i], b.part[i]));
}
SPECDEC_LANE_OP Lanes fma(Lanes a, Lanes b, Lanes c) {
  SPECDEC_EACH_PART(vfmaq_f32(c.part[i], a.part[i], b.part[i]));
}
SPECDEC_LANE_OP Lanes fnma(Lanes a, Lanes b, Lanes c) {
  SPECDEC_EACH_PART(vfmsq_f32(c.part[i], a.part[i], b.part[i]));
}
SPECDEC_LANE_OP Lanes greater(Lanes a, Lanes b) {
  SPECDEC_EACH_PART(vbslq_f32(vcgtq_f32(a.part[i], b.part[i]), a.part[i], b.part[i]));
}
SPECDEC_LANE_OP Lanes zero_below(Lanes x, Lanes bound, Lanes value) {
  SPECDEC_EACH_PART(
      vbslq_f32(vcltq_f32(x.part[i], bound.part[i]), vdupq_n_f32(0.0f), value.part[i]));
}
SPECDEC_LANE_OP Lanes scale_by_power(Lanes x, Lanes shifted) {
  SPECDEC_EACH_PART(vmulq_f32(
      x.part[i], vreinterpretq_f32_s32(vaddq_s32(
                     vshlq_n_s32(vreinterpretq_s32_f32(shifted.part[i]), 23),
                     vdupq_n_s32(127 << 23)))));
}
SPECDEC_LANE_OP float32x4_t fold(Lanes x) {
  return vaddq_f32(vaddq_f32(x.part[0], x.part[2]), vaddq_f32(x.part[1], x.part[3]));
}
SPECDEC_LANE_OP Lanes fold4(Lanes a, Lanes b, Lanes c, Lanes d) {
  return {{fold(a), fold(b), fold(c), fold(d)}};
}
SPECDEC_LANE_OP Lanes fold_quarters(Lanes a, Lanes b, Lanes c, Lanes d) {
  SPECDEC_EACH_PART(vpaddq_f32(vpaddq_f32(a.part[i], b.part[i]), vpaddq_f32(c.part[i], d.part[i])));
}

#undef SPECDEC_EACH_PART

}  // namespace specdec::ops::SPECDEC_LANES
