#pragma once

// Sixteen floats that are worked on at once, one header for each instruction set: lanes16_avx512.h,
// lanes16_avx2.h, lanes16_neon.h, lanes16_plain.h. All have the same functions, and these give the
// same bits: a multiply-add is fused everywhere, and sums across lanes are taken in one order,
//   lane j + lane j + 8, of these j + (j + 4), and of the four that are left (0 + 1) + (2 + 3).
// The file that includes one names the namespace it is in by SPECDEC_LANES.
//
//   load, store, splat, add, subtract, multiply, divide
//   load_first(from, n), store_first(to, x, n)   n <= 16 lanes, no other is touched; zeros
//   keep_first(x, n, other)     the first n lanes of x, the others of `other`
//   fma(a, b, c), fnma(a, b, c)  c + a * b and c - a * b, rounded once
//   greater(a, b)               a > b ? a : b
//   zero_below(x, bound, value)  x < bound ? 0 : value
//   scale_by_power(x, shifted)  x * 2^n where shifted is 1.5 * 2^23 + n
//   fold4(a, b, c, d)           lane 4 * i + l: of the i-th, lane l of the four left above
//   fold_quarters(a, b, c, d)   lane 4 * i + l: of the l-th, (0 + 1) + (2 + 3) of its lanes 4 * i + ..
// so that 16 sums are fold_quarters of four fold4, of items 0, 4, 8, 12, of 1, 5, 9, 13, ...

#if defined(__GNUC__)  // GCC and Clang
#define SPECDEC_TARGET(names) __attribute__((target(names)))
#define SPECDEC_FORCE_INLINE __attribute__((always_inline)) inline
// Registers are passed between inlined functions only: how a real call would do it is no concern.
#pragma GCC diagnostic ignored "-Wpsabi"
#else
#define SPECDEC_TARGET(names)
#define SPECDEC_FORCE_INLINE inline
#endif
