#pragma once

// Sixteen floats that are worked on at once, in plain C++; vectors_avx512.h, vectors_avx2.h and
// vectors_neon.h have the same on their instruction sets. What is computed with these functions
// has the same bits on all of them (other than the payload of NaN).

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#define SPECDEC_OPS_TARGET_END

namespace specdec::ops {
namespace {

struct Floats {
  float lane[16];
};

template <class Work>
inline Floats by_lanes(const Work& work) {
  Floats result;
  for (int i = 0; i < 16; ++i) result.lane[i] = work(i);
  return result;
}

inline std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// The number that the bits x are as an IEEE 754 half; exact.
inline float float_of_half(std::uint16_t x) {
  const std::uint32_t sign = (x & 0x8000u) << 16;
  const std::uint32_t magnitude = x & 0x7FFFu;
  if (magnitude < 0x0400u) {  // zero and subnormals: whole multiples of 2^-24
    return float_of(bits_of(static_cast<float>(magnitude) * 0x1p-24f) | sign);
  }
  const std::uint32_t bias = magnitude >= 0x7C00u ? 224u : 112u;  // infinite and NaN stay so
  return float_of(((magnitude << 13) + (bias << 23)) | sign);
}

// x rounded to the nearest half, ties to even; beyond the largest one, infinite.
inline std::uint16_t half_of_float(float x) {
  const std::uint32_t sign = bits_of(x) >> 16 & 0x8000u;
  const float magnitude = float_of(bits_of(x) & 0x7FFFFFFFu);
  std::uint32_t half;
  if (magnitude < 0x1p-14f) {  // to whole multiples of 2^-24, which end at the sum's last bit
    half = bits_of(magnitude + 0.5f) - bits_of(0.5f);
  } else if (magnitude < 65520.0f) {
    const std::uint32_t bits = bits_of(magnitude) - (112u << 23);
    half = (bits + 0x0FFFu + (bits >> 13 & 1u)) >> 13;
  } else {
    half = magnitude > 65519.0f ? 0x7C00u : 0x7E00u;  // NaN exceeds nothing
  }
  return static_cast<std::uint16_t>(sign | half);
}

inline Floats all(float x) {
  return by_lanes([&](int) { return x; });
}
inline Floats load(const float* x) {
  return by_lanes([&](int i) { return x[i]; });
}
inline Floats load_halves(const std::uint16_t* x) {
  return by_lanes([&](int i) { return float_of_half(x[i]); });
}
inline Floats load_halves_part(const std::uint16_t* x, int count) {  // the first `count`, and zeros
  return by_lanes([&](int i) { return i < count ? float_of_half(x[i]) : 0.0f; });
}
inline void store_halves(const Floats& x, std::uint16_t* out) {  // rounded to nearest even
  for (int i = 0; i < 16; ++i) out[i] = half_of_float(x.lane[i]);
}
inline void store(const Floats& x, float* out) { std::memcpy(out, x.lane, sizeof x.lane); }
inline void store_part(const Floats& x, float* out, int count) {  // the first `count`, 0 to 16
  std::memcpy(out, x.lane, static_cast<std::size_t>(count) * sizeof(float));
}
inline Floats add(const Floats& a, const Floats& b) {
  return by_lanes([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline Floats subtract(const Floats& a, const Floats& b) {
  return by_lanes([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline Floats multiply(const Floats& a, const Floats& b) {
  return by_lanes([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline Floats divide(const Floats& a, const Floats& b) {
  return by_lanes([&](int i) { return a.lane[i] / b.lane[i]; });
}
// a * b + c, rounded once.
inline Floats fma(const Floats& a, const Floats& b, const Floats& c) {
  return by_lanes([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
}
// Where a number is NaN, the result depends on the instruction set.
inline Floats greater(const Floats& a, const Floats& b) {
  return by_lanes([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Floats smaller(const Floats& a, const Floats& b) {
  return by_lanes([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}

// The sum of all: lanes 8 apart are added first, then those 4, 2 and 1 apart.
inline float fold_add(Floats x) {
  for (int apart = 8; apart > 0; apart /= 2) {
    for (int i = 0; i < apart; ++i) x.lane[i] += x.lane[i + apart];
  }
  return x.lane[0];
}
inline bool any_at_least(const Floats& x, const Floats& least) {
  bool found = false;
  for (int i = 0; i < 16; ++i) found = found || x.lane[i] >= least.lane[i];
  return found;
}
inline float fold_greater(const Floats& x) {
  float greatest = x.lane[0];
  for (int i = 1; i < 16; ++i) greatest = x.lane[i] > greatest ? x.lane[i] : greatest;
  return greatest;
}

// The greatest |x| of all 32; NaN where one is NaN (whose bits exceed those of all numbers).
inline float largest_magnitude(const Floats& a, const Floats& b) {
  std::uint32_t largest = 0;
  for (const Floats* x : {&a, &b}) {
    for (float lane : x->lane) {
      const std::uint32_t magnitude = bits_of(lane) & 0x7FFFFFFFu;
      largest = magnitude > largest ? magnitude : largest;
    }
  }
  return float_of(largest);
}

// Writes all 32 rounded to nearest even and clamped to -127..127; returns their sum.
inline std::int32_t store_rounded(const Floats& a, const Floats& b, std::int8_t* out) {
  std::int32_t sum = 0;
  for (const Floats* x : {&a, &b}) {
    for (float lane : x->lane) {
      const float whole = std::nearbyint(lane);
      const int inside = whole >= 127.0f ? 127 : whole > -127.0f ? static_cast<int>(whole) : -127;
      *out++ = static_cast<std::int8_t>(inside);
      sum += inside;
    }
  }
  return sum;
}

// 2^n, where shifted is n + 1.5 * 2^23 (its low bits hold n); n from -126 to 127.
inline Floats power_of_two(const Floats& shifted) {
  return by_lanes([&](int i) { return float_of((bits_of(shifted.lane[i]) << 23) + (127u << 23)); });
}

}  // namespace
}  // namespace specdec::ops
