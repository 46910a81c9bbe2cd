#pragma once

// What scores and weighted sums share: the sizes they work by, and keys and values as halves (IEEE
// 754). A part of attention_loops.h, which includes it.

#include "attention_kernels.h"

// Inlined into one large function, loops are left too few registers.
#if defined(__GNUC__)
#define SPECDEC_OPS_APART __attribute__((noinline))
#else
#define SPECDEC_OPS_APART
#endif

namespace specdec::ops {
namespace {

constexpr std::int32_t kLanes = 16;

inline std::int32_t smaller_of(std::int32_t a, std::int32_t b) { return a < b ? a : b; }
inline std::int32_t greater_of(std::int32_t a, std::int32_t b) { return a > b ? a : b; }

// Keys and values are halves, which become floats where they are read.
inline Floats load(const std::uint16_t* x) { return load_halves(x); }
inline Floats load_part(const std::uint16_t* x, int count) { return load_halves_part(x, count); }

// No further from zero than the largest half: an infinite one would make scores NaN.
inline Floats within_halves(Floats x) {
  return smaller(all(65504.0f), greater(all(-65504.0f), x));
}

void halve(const float* x, std::int32_t n, std::uint16_t* out) {
  std::int32_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_halves(within_halves(load(x + i)), out + i);
  if (i == n) return;
  std::uint16_t last[kLanes];
  store_halves(within_halves(load_part(x + i, n - i)), last);
  for (std::int32_t j = i; j < n; ++j) out[j] = last[j - i];
}

inline const std::uint16_t* key_tile(const std::uint16_t* key, std::int32_t head_dim,
                                     std::int32_t tile) {
  return key + static_cast<std::size_t>(tile) * static_cast<std::size_t>(kKeyTile * head_dim);
}

}  // namespace
}  // namespace specdec::ops
