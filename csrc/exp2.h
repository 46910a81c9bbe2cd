#pragma once

#include "lanes.h"

namespace specdec::lanes {

// 2^x for x <= 0, with a relative error below 3e-7; 0 below -126 (and for -inf).
inline Floats exp2_nonpositive(const Floats& x) {
  const Floats shifted = x + 12582912.0f;  // 1.5 * 2^23 rounds to an integer
  const Floats r = x - (shifted - 12582912.0f);  // exact
  // Of the polynomials of degree 5 that are 1 at 0 that of least relative error on [-1/2, 1/2]. In
  // pairs, not one term after the other: the loop waits for this chain more than for anything.
  const Floats square = r * r;
  const Floats first = r * 1.3264727313e-03f + 9.6715129912e-03f;
  const Floats second = r * 5.5507335812e-02f + 2.4022242427e-01f;
  const Floats third = r * 6.9314700365e-01f + 1.0f;
  const Floats p = (first * square + second) * square + third;
  // The low bits of `shifted` hold the integer; the shift drops all others. NaN passes through p,
  // and what the bits stand for below -126 is not looked at.
  const Words exponent = (bits_as<Words>(shifted) << 23) + (127u << 23);
  return select(x < all<Floats>(-126.0f), Floats{}, p * bits_as<Floats>(exponent));
}

// At least 2^x for x <= 0, but for rounding (a share of 1e-5), and at most 1.0615 of it: between
// powers of two on straight lines, which is what the bits of a float are. 0 below -127.
inline Floats exp2_bound(const Floats& x) {
  const Floats least = all<Floats>(-127.0f);
  const Floats clamped = select(x > least, x, least);  // NaN goes as well
  return bits_as<Floats>(convert<Ints>((clamped + 127.0f) * 8388608.0f));
}

}  // namespace specdec::lanes
