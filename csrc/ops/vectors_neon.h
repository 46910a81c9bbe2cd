#pragma once

// Sixteen floats, on NEON with dot products. vectors_plain.h says what the functions do. To be
// included last: everything behind it is compiled for this instruction set.

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#if defined(__APPLE__)  // its compilers' default has them
#define SPECDEC_OPS_TARGET_END
#elif defined(__clang__)
#define SPECDEC_OPS_TARGET_END _Pragma("clang attribute pop")
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#define SPECDEC_OPS_TARGET_END
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

namespace specdec::ops {
namespace {

struct Floats {
  float32x4_t part[4];
};

template <class Work>
inline Floats by_parts(const Work& work) {
  return {{work(0), work(1), work(2), work(3)}};
}

inline Floats all(float x) {
  return by_parts([&](int) { return vdupq_n_f32(x); });
}
inline Floats load(const float* x) {
  return by_parts([&](int i) { return vld1q_f32(x + 4 * i); });
}
inline Floats load_halves(const std::uint16_t* x) {
  return by_parts([&](int i) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x + 4 * i)));
  });
}
inline Floats load_halves_part(const std::uint16_t* x, int count) {
  std::uint16_t whole[16] = {};
  std::memcpy(whole, x, static_cast<std::size_t>(count) * sizeof *x);
  return load_halves(whole);
}
inline void store_halves(Floats x, std::uint16_t* out) {
  for (int i = 0; i < 4; ++i) {
    vst1_u16(out + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.part[i])));
  }
}
inline void store(Floats x, float* out) {
  for (int i = 0; i < 4; ++i) vst1q_f32(out + 4 * i, x.part[i]);
}
inline void store_part(Floats x, float* out, int count) {
  float whole[16];
  store(x, whole);
  std::memcpy(out, whole, static_cast<std::size_t>(count) * sizeof(float));
}
inline Floats add(Floats a, Floats b) {
  return by_parts([&](int i) { return vaddq_f32(a.part[i], b.part[i]); });
}
inline Floats subtract(Floats a, Floats b) {
  return by_parts([&](int i) { return vsubq_f32(a.part[i], b.part[i]); });
}
inline Floats multiply(Floats a, Floats b) {
  return by_parts([&](int i) { return vmulq_f32(a.part[i], b.part[i]); });
}
inline Floats divide(Floats a, Floats b) {
  return by_parts([&](int i) { return vdivq_f32(a.part[i], b.part[i]); });
}
inline Floats fma(Floats a, Floats b, Floats c) {
  return by_parts([&](int i) { return vfmaq_f32(c.part[i], a.part[i], b.part[i]); });
}
inline Floats greater(Floats a, Floats b) {
  return by_parts([&](int i) { return vmaxq_f32(a.part[i], b.part[i]); });
}
inline Floats smaller(Floats a, Floats b) {
  return by_parts([&](int i) { return vminq_f32(a.part[i], b.part[i]); });
}

inline float fold_add(Floats x) {
  const float32x4_t low = vaddq_f32(x.part[0], x.part[2]);
  const float32x4_t high = vaddq_f32(x.part[1], x.part[3]);
  const float32x4_t four = vaddq_f32(low, high);
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
inline bool any_at_least(Floats x, Floats least) {
  const auto found = [&](int i) { return vcgeq_f32(x.part[i], least.part[i]); };
  return vmaxvq_u32(vorrq_u32(vorrq_u32(found(0), found(1)), vorrq_u32(found(2), found(3)))) != 0;
}
inline float fold_greater(Floats x) {
  return vmaxvq_f32(
      vmaxq_f32(vmaxq_f32(x.part[0], x.part[1]), vmaxq_f32(x.part[2], x.part[3])));
}

inline float largest_magnitude(Floats a, Floats b) {
  uint32x4_t largest = vdupq_n_u32(0);
  for (int i = 0; i < 4; ++i) {
    largest = vmaxq_u32(largest, vreinterpretq_u32_f32(vabsq_f32(a.part[i])));
    largest = vmaxq_u32(largest, vreinterpretq_u32_f32(vabsq_f32(b.part[i])));
  }
  const std::uint32_t bits = vmaxvq_u32(largest);
  float magnitude;
  std::memcpy(&magnitude, &bits, sizeof magnitude);
  return magnitude;
}

inline std::int32_t store_rounded(Floats a, Floats b, std::int8_t* out) {
  int32x4_t sum = vdupq_n_s32(0);
  const auto rounded = [&](float32x4_t x) {
    const int32x4_t whole = vcvtnq_s32_f32(x);
    const int32x4_t inside = vmaxq_s32(vminq_s32(whole, vdupq_n_s32(127)), vdupq_n_s32(-127));
    sum = vaddq_s32(sum, inside);
    return vmovn_s32(inside);
  };
  const Floats* half[2] = {&a, &b};
  for (int i = 0; i < 2; ++i) {
    const float32x4_t* part = half[i]->part;
    const int16x8_t first = vcombine_s16(rounded(part[0]), rounded(part[1]));
    const int16x8_t second = vcombine_s16(rounded(part[2]), rounded(part[3]));
    vst1q_s8(out + 16 * i, vcombine_s8(vmovn_s16(first), vmovn_s16(second)));
  }
  return vaddvq_s32(sum);
}

inline Floats power_of_two(Floats shifted) {
  return by_parts([&](int i) {
    const uint32x4_t exponent = vshlq_n_u32(vreinterpretq_u32_f32(shifted.part[i]), 23);
    return vreinterpretq_f32_u32(vaddq_u32(exponent, vdupq_n_u32(127u << 23)));
  });
}

}  // namespace
}  // namespace specdec::ops
