#pragma once

#include <cstdint>
#include <cstring>

// Eight values that are worked on at once. Loops over plain arrays would say the same, but what a
// compiler makes of those depends on its flags and version; what it makes of these does not.
// Lane by lane the arithmetic is that of the scalar type, on every instruction set.

#if defined(__GNUC__)  // GCC and Clang
// Such values are passed between inlined functions only: how a real call would pass them is no
// concern.
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace specdec::lanes {

constexpr int kWidth = 8;

#if defined(__GNUC__) && !defined(SPECDEC_PLAIN_LANES)

using Floats = float __attribute__((vector_size(32)));
using Ints = std::int32_t __attribute__((vector_size(32)));
using Words = std::uint32_t __attribute__((vector_size(32)));
using Longs = std::uint64_t __attribute__((vector_size(64)));

template <class To, class From>
inline To convert(const From& from) {
  return __builtin_convertvector(from, To);
}
template <class Mask, class Value>
inline Value select(const Mask& mask, const Value& yes, const Value& no) {
  return mask ? yes : no;
}

#else

template <class T>
struct Lanes {
  T lane[kWidth];
  T& operator[](int j) { return lane[j]; }
  T operator[](int j) const { return lane[j]; }
};
using Floats = Lanes<float>;
using Ints = Lanes<std::int32_t>;
using Words = Lanes<std::uint32_t>;
using Longs = Lanes<std::uint64_t>;

#define SPECDEC_LANES_OPERATOR(op)                                                   \
  template <class T>                                                                 \
  inline auto operator op(const Lanes<T>& a, const Lanes<T>& b) {                    \
    Lanes<decltype(+(a.lane[0] op b.lane[0]))> result{};                             \
    for (int j = 0; j < kWidth; ++j) result.lane[j] = a.lane[j] op b.lane[j];        \
    return result;                                                                   \
  }                                                                                  \
  template <class T, class S>                                                        \
  inline auto operator op(const Lanes<T>& a, S s) {                                  \
    Lanes<T> b{};                                                                    \
    for (int j = 0; j < kWidth; ++j) b.lane[j] = static_cast<T>(s);                  \
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

template <class T>
inline Lanes<T> operator-(const Lanes<T>& a) {
  return a * static_cast<T>(-1);
}
template <class T>
inline Lanes<T> operator~(const Lanes<T>& a) {
  return a ^ static_cast<T>(~T{0});
}
template <class To, class From>
inline To convert(const Lanes<From>& from) {
  To to{};
  for (int j = 0; j < kWidth; ++j) to[j] = static_cast<decltype(+to[j])>(from.lane[j]);
  return to;
}
template <class M, class T>
inline Lanes<T> select(const Lanes<M>& mask, const Lanes<T>& yes, const Lanes<T>& no) {
  Lanes<T> result{};
  for (int j = 0; j < kWidth; ++j) result.lane[j] = mask.lane[j] ? yes.lane[j] : no.lane[j];
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
  V result{};
  for (int j = 0; j < kWidth; ++j) result[j] = value;
  return result;
}

// Whether a lane of a mask is set.
inline bool any(const Ints& mask) {
  std::uint64_t half[kWidth / 2];
  std::memcpy(half, &mask, sizeof(half));
  return (half[0] | half[1] | half[2] | half[3]) != 0;
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
inline Words load(const std::uint32_t* from) {
  Words result;
  std::memcpy(&result, from, sizeof(result));
  return result;
}
inline void store(const Floats& from, float* to) { std::memcpy(to, &from, sizeof(from)); }
inline void store(const Words& from, std::uint32_t* to) { std::memcpy(to, &from, sizeof(from)); }

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
