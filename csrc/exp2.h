#pragma once

#include "lanes.h"

namespace specdec::lanes {

inline Words words_of(const Floats& x) { return bits_as<Words>(x); }
inline WideWords words_of(const WideFloats& x) { return bits_as<WideWords>(x); }

// 2^x for x <= 0, with a relative error below 3e-7; 0 below -126 (and for -inf). Of Floats or
// WideFloats.
template <class Values>
inline Values exp2_nonpositive(const Values& x) {
  // 1.5 * 2^23 rounds to an integer; 128 more has it ready to be an exponent, of twice the result.
  constexpr float kRound = 12582912.0f + 128.0f;
  const Values shifted = x + kRound;
  const Values r = x - (shifted - kRound);  // exact
  // Half of that of least relative error on [-1/2, 1/2] among polynomials of degree 5 that are 1 at
  // 0. In pairs, not one term after the other: else loops may wait for this chain.
  const Values square = r * r;
  const Values first = r * (0.5f * 1.3264727313e-03f) + 0.5f * 9.6715129912e-03f;
  const Values second = r * (0.5f * 5.5507335812e-02f) + 0.5f * 2.4022242427e-01f;
  const Values third = r * (0.5f * 6.9314700365e-01f) + 0.5f;
  const Values p = (first * square + second) * square + third;
  // The low bits of `shifted` hold the integer; the shift drops all others. NaN passes through p,
  // and what the bits stand for below -126 is not looked at.
  const auto exponent = words_of(shifted) << 23;
  return select(x < all<Values>(-126.0f), Values{}, p * bits_as<Values>(exponent));
}

// At least 2^x for x <= 0, but for rounding (a share of 1e-5), and at most 1.0615 of it: between
// powers of two on straight lines, which is what the bits of a float are. 0 below -127.
inline Floats exp2_bound(const Floats& x) {
  const Floats least = all<Floats>(-127.0f);
  const Floats clamped = select(x > least, x, least);  // NaN goes as well
  return bits_as<Floats>(convert<Ints>((clamped + 127.0f) * 8388608.0f));
}

}  // namespace specdec::lanes
