#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "lanes16.h"

// Sixteen floats without any instruction set in particular; see lanes16.h.

#define SPECDEC_LANES_TARGET
#define SPECDEC_LANE_OP SPECDEC_FORCE_INLINE

namespace specdec::ops::SPECDEC_LANES {

struct Lanes {
  float lane[16];
};

constexpr int kVectorsAtOnce = 1;
constexpr int kItemsAtOnce = 2;

#define SPECDEC_EACH_LANE(value)                    \
  Lanes result;                                     \
  for (int i = 0; i < 16; ++i) {                    \
    result.lane[i] = value;                         \
  }                                                 \
  return result

SPECDEC_LANE_OP Lanes load(const float* from) { SPECDEC_EACH_LANE(from[i]); }
SPECDEC_LANE_OP void store(float* to, const Lanes& x) { std::memcpy(to, x.lane, sizeof(x.lane)); }
SPECDEC_LANE_OP Lanes load_first(const float* from, std::int32_t n) {
  SPECDEC_EACH_LANE(i < n ? from[i] : 0.0f);
}
SPECDEC_LANE_OP void store_first(float* to, const Lanes& x, std::int32_t n) {
  for (std::int32_t i = 0; i < n; ++i) to[i] = x.lane[i];
}
SPECDEC_LANE_OP Lanes keep_first(const Lanes& x, std::int32_t n, const Lanes& other) {
  SPECDEC_EACH_LANE(i < n ? x.lane[i] : other.lane[i]);
}
SPECDEC_LANE_OP Lanes splat(float x) { SPECDEC_EACH_LANE(x); }
SPECDEC_LANE_OP Lanes add(const Lanes& a, const Lanes& b) {
  SPECDEC_EACH_LANE(a.lane[i] + b.lane[i]);
}
SPECDEC_LANE_OP Lanes subtract(const Lanes& a, const Lanes& b) {
  SPECDEC_EACH_LANE(a.lane[i] - b.lane[i]);
}
SPECDEC_LANE_OP Lanes multiply(const Lanes& a, const Lanes& b) {
  SPECDEC_EACH_LANE(a.lane[i] * b.lane[i]);
}
SPECDEC_LANE_OP Lanes divide(const Lanes& a, const Lanes& b) {
  SPECDEC_EACH_LANE(a.lane[i] / b.lane[i]);
}
SPECDEC_LANE_OP Lanes fma(const Lanes& a, const Lanes& b, const Lanes& c) {
  SPECDEC_EACH_LANE(std::fma(a.lane[i], b.lane[i], c.lane[i]));
}
SPECDEC_LANE_OP Lanes fnma(const Lanes& a, const Lanes& b, const Lanes& c) {
  SPECDEC_EACH_LANE(std::fma(-a.lane[i], b.lane[i], c.lane[i]));
}
SPECDEC_LANE_OP Lanes greater(const Lanes& a, const Lanes& b) {
  SPECDEC_EACH_LANE(a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]);
}
SPECDEC_LANE_OP Lanes zero_below(const Lanes& x, const Lanes& bound, const Lanes& value) {
  SPECDEC_EACH_LANE(x.lane[i] < bound.lane[i] ? 0.0f : value.lane[i]);
}
SPECDEC_LANE_OP float power(float shifted) {
  std::uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits << 23) + (127u << 23);
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}
SPECDEC_LANE_OP Lanes scale_by_power(const Lanes& x, const Lanes& shifted) {
  SPECDEC_EACH_LANE(x.lane[i] * power(shifted.lane[i]));
}
SPECDEC_LANE_OP float fold(const Lanes& x, int i) {
  return (x.lane[i] + x.lane[i + 8]) + (x.lane[i + 4] + x.lane[i + 12]);
}
SPECDEC_LANE_OP Lanes fold4(const Lanes& a, const Lanes& b, const Lanes& c, const Lanes& d) {
  const Lanes* const from[4] = {&a, &b, &c, &d};
  SPECDEC_EACH_LANE(fold(*from[i / 4], i % 4));
}
SPECDEC_LANE_OP float quarter(const Lanes& x, int i) {
  return (x.lane[i] + x.lane[i + 1]) + (x.lane[i + 2] + x.lane[i + 3]);
}
SPECDEC_LANE_OP Lanes fold_quarters(const Lanes& a, const Lanes& b, const Lanes& c,
                                    const Lanes& d) {
  const Lanes* const from[4] = {&a, &b, &c, &d};
  SPECDEC_EACH_LANE(quarter(*from[i % 4], i / 4 * 4));
}

#undef SPECDEC_EACH_LANE

}  // namespace specdec::ops::SPECDEC_LANES
