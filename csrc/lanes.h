#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

// Eight values that are worked on at once, or sixteen. Loops over plain arrays would say the same,
// but what a compiler makes of those depends on its flags and version; what it makes of these does
// not. Lane by lane the arithmetic is that of the scalar type, on every instruction set.
//
// Sixteen are for loops that do much with each value and little else: where an instruction takes
// as many, there are half as many of them.

#if defined(__GNUC__)  // GCC and Clang
// Such values are passed between inlined functions only: how a real call would pass them is no
// concern.
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace specdec::lanes {

constexpr int kWidth = 8;
constexpr int kWide = 16;

#if defined(__GNUC__) && !defined(SPECDEC_PLAIN_LANES)

using Floats = float __attribute__((vector_size(32)));
using Ints = std::int32_t __attribute__((vector_size(32)));
using Words = std::uint32_t __attribute__((vector_size(32)));
using Bytes = std::uint8_t __attribute__((vector_size(8)));
using Longs = std::uint64_t __attribute__((vector_size(64)));
using Doubles = double __attribute__((vector_size(64)));
using WideFloats = float __attribute__((vector_size(64)));
using WideInts = std::int32_t __attribute__((vector_size(64)));
using WideWords = std::uint32_t __attribute__((vector_size(64)));

template <class To, class From>
inline To convert(const From& from) {
  return __builtin_convertvector(from, To);
}
template <class Mask, class Value>
inline Value select(const Mask& mask, const Value& yes, const Value& no) {
  return mask ? yes : no;
}

#else

template <class T, int N>
struct Lanes {
  T lane[N];
  T& operator[](int j) { return lane[j]; }
  T operator[](int j) const { return lane[j]; }
};
using Floats = Lanes<float, kWidth>;
using Ints = Lanes<std::int32_t, kWidth>;
using Words = Lanes<std::uint32_t, kWidth>;
using Bytes = Lanes<std::uint8_t, kWidth>;
using Longs = Lanes<std::uint64_t, kWidth>;
using Doubles = Lanes<double, kWidth>;
using WideFloats = Lanes<float, kWide>;
using WideInts = Lanes<std::int32_t, kWide>;
using WideWords = Lanes<std::uint32_t, kWide>;

#define SPECDEC_LANES_OPERATOR(op)                                                   \
  template <class T, int N>                                                          \
  inline auto operator op(const Lanes<T, N>& a, const Lanes<T, N>& b) {              \
    Lanes<decltype(+(a.lane[0] op b.lane[0])), N> result{};                          \
    for (int j = 0; j < N; ++j) result.lane[j] = a.lane[j] op b.lane[j];             \
    return result;                                                                   \
  }                                                                                  \
  template <class T, int N, class S>                                                 \
  inline auto operator op(const Lanes<T, N>& a, S s) {                               \
    Lanes<T, N> b{};                                                                 \
    for (int j = 0; j < N; ++j) b.lane[j] = static_cast<T>(s);                       \
    return a op b;                                                                   \
  }
SPECDEC_LANES_OPERATOR(+)
SPECDEC_LANES_OPERATOR(-)
SPECDEC_LANES_OPERATOR(*)
SPECDEC_LANES_OPERATOR(/)
SPECDEC_LANES_OPERATOR(>>)
SPECDEC_LANES_OPERATOR(<<)
SPECDEC_LANES_OPERATOR(&)
SPECDEC_LANES_OPERATOR(^)
SPECDEC_LANES_OPERATOR(|)
SPECDEC_LANES_OPERATOR(<)
SPECDEC_LANES_OPERATOR(>)
SPECDEC_LANES_OPERATOR(>=)
SPECDEC_LANES_OPERATOR(==)
#undef SPECDEC_LANES_OPERATOR

template <class T, int N>
inline Lanes<T, N> operator-(const Lanes<T, N>& a) {
  return a * static_cast<T>(-1);
}
template <class T, int N>
inline Lanes<T, N> operator~(const Lanes<T, N>& a) {
  return a ^ static_cast<T>(~T{0});
}
template <class To, class From, int N>
inline To convert(const Lanes<From, N>& from) {
  To to{};
  for (int j = 0; j < N; ++j) to[j] = static_cast<std::decay_t<decltype(to[j])>>(from.lane[j]);
  return to;
}
template <class M, class T, int N>
inline Lanes<T, N> select(const Lanes<M, N>& mask, const Lanes<T, N>& yes,
                          const Lanes<T, N>& no) {
  Lanes<T, N> result{};
  for (int j = 0; j < N; ++j) result.lane[j] = mask.lane[j] ? yes.lane[j] : no.lane[j];
  return result;
}

#endif

template <class To, class From>
inline To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <class V, class T>
inline V all(T value) {
  constexpr int count = static_cast<int>(sizeof(V) / sizeof(T));
  V result{};
  for (int j = 0; j < count; ++j) result[j] = value;
  return result;
}

// Whether a lane of a mask is set.
inline bool any(const Ints& mask) {
  std::uint64_t half[kWidth / 2];
  std::memcpy(half, &mask, sizeof(half));
  return (half[0] | half[1] | half[2] | half[3]) != 0;
}

// The lanes' low bytes, that of the first lowest.
inline std::uint64_t bytes_of(const Ints& value) {
  const Bytes bytes = convert<Bytes>(value);
  std::uint64_t result = 0;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  std::memcpy(&result, &bytes, sizeof(result));
#else
  for (int j = 0; j < kWidth; ++j) result |= std::uint64_t{bytes[j]} << (8 * j);
#endif
  return result;
}

inline std::int32_t count_bits(std::uint64_t bits) {
#if defined(__GNUC__)
  return __builtin_popcountll(bits);
#else
  std::int32_t count = 0;
  for (; bits != 0; bits &= bits - 1) ++count;
  return count;
#endif
}

// The number of the lowest bit that is set, where one is.
inline std::int32_t lowest_bit(std::uint64_t bits) {
#if defined(__GNUC__)
  return __builtin_ctzll(bits);
#else
  std::int32_t number = 0;
  for (; (bits & 1) == 0; bits >>= 1) ++number;
  return number;
#endif
}

// 0, 1, 2, ...
template <class V>
inline V count_up() {
  V result{};
  for (unsigned j = 0; j < kWidth; ++j) result[j] = j;
  return result;
}

inline Floats load(const float* from) {
  Floats result;
  std::memcpy(&result, from, sizeof(result));
  return result;
}
inline WideFloats load_sixteen(const float* from) {
  WideFloats result;
  std::memcpy(&result, from, sizeof(result));
  return result;
}
inline Words load(const std::uint32_t* from) {
  Words result;
  std::memcpy(&result, from, sizeof(result));
  return result;
}
inline void store(const Floats& from, float* to) { std::memcpy(to, &from, sizeof(from)); }
inline void store(const WideFloats& from, float* to) { std::memcpy(to, &from, sizeof(from)); }
inline void store(const Words& from, std::uint32_t* to) { std::memcpy(to, &from, sizeof(from)); }

// The first and the last eight.
inline void split(const WideFloats& from, Floats& first, Floats& last) {
  float values[kWide];
  store(from, values);
  first = load(values);
  last = load(values + kWidth);
}

// The first n < kWidth values, the others zero; and back.
inline Floats load_part(const float* from, std::int32_t n) {
  Floats result{};
  for (int j = 0; j < n; ++j) result[j] = from[j];
  return result;
}
// The first n <= kWidth values, made wider.
inline Words load_wide(const std::uint16_t* from, std::int32_t n) {
  std::uint32_t wide[kWidth] = {};
  for (int j = 0; j < n; ++j) wide[j] = from[j];
  return load(wide);
}
inline void store_part(const Floats& from, float* to, std::int32_t n) {
  for (int j = 0; j < n; ++j) to[j] = from[j];
}

}  // namespace specdec::lanes
