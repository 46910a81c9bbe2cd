#pragma once

// Functions of sixteen floats with the same bits on every instruction set. To be included behind one
// of the vectors_*.h.

namespace specdec::ops {
namespace {

// exp(x), x clamped to [-87, 88]; relative error below 2e-7. NaN stays NaN: of greater and smaller it
// is the second operand that does, on all instruction sets.
inline Floats exp(Floats x) {
  x = smaller(all(88.0f), greater(all(-87.0f), x));
  const Floats magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Floats shifted = fma(x, all(1.44269504f), magic);
  const Floats n = subtract(shifted, magic);
  // log 2 in two parts, the first of few bits, so that the remainder is exact.
  Floats r = fma(n, all(-0.693359375f), x);
  r = fma(n, all(2.12194440e-4f), r);
  const Floats square = multiply(r, r);
  const Floats first = fma(r, all(1.9875691500e-4f), all(1.3981999507e-3f));
  const Floats second = fma(r, all(8.3334519073e-3f), all(4.1665795894e-2f));
  const Floats third = fma(r, all(1.6666665459e-1f), all(5.0000001201e-1f));
  const Floats p = fma(fma(first, square, second), square, third);
  return multiply(fma(p, square, add(r, all(1.0f))), power_of_two(shifted));
}

// x / (1 + exp(-x)) (SiLU).
inline Floats silu(Floats x) {
  return divide(x, add(all(1.0f), exp(subtract(all(0.0f), x))));
}

}  // namespace
}  // namespace specdec::ops
