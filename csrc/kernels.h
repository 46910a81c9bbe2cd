#pragma once

#include <cstdint>

namespace specdec {

// Loops over a vocabulary, written in lanes, and compiled for several instruction sets where the
// platform can choose at load time. No fused multiply-add and a fixed order of additions: every
// instruction set gives the same bits.
namespace kernels {

// Index of the first greatest of x[n]; NaN is never greatest. n > 0.
std::int32_t argmax(const float* x, std::int32_t n);

float max(const float* x, std::int32_t n);

// Maxima by eights of x[n], for searches that are to pass over what cannot matter. Of every 64
// elements out has those of lane 0, 8, 16, ..., of lane 1, 9, 17, ... and so on.
constexpr std::int32_t kMaximaBlock = 64;
constexpr std::int32_t maxima_size(std::int32_t n) {
  return (n + kMaximaBlock - 1) / kMaximaBlock * 8;
}

// Writes them to out[maxima_size(n)] and returns the greatest; NaN where any x is NaN.
float maxima(const float* x, std::int32_t n, float* out);

// How many of x[n] are at least threshold.
std::int32_t count_at_least(const float* x, std::int32_t n, float threshold);

// Some of the greatest, in descending order.
struct Ranked {
  float value;
  std::int32_t index;
};

// Puts `entry` in its place among best[m], whose last it exceeds.
inline void rank(Ranked* best, std::int32_t m, const Ranked& entry) {
  std::int32_t i = m - 1;
  for (; i > 0 && best[i - 1].value < entry.value; --i) best[i] = best[i - 1];
  best[i] = entry;
}

// Puts what exceeds best[m - 1] of x[n] into best[m], as index first + i; NaN never does, and
// equals stay in their order.
void top(const float* x, std::int32_t n, std::int32_t first, Ranked* best, std::int32_t m);

double sum(const float* x, std::int32_t n);

// Sum of those x[i] that are at least threshold, in double precision from the first on.
double sum_at_least(const float* x, std::int32_t n, float threshold);

// out[i] = 2^((x[i] - shift) * scale), zero below 2^-126, for x[i] <= shift; returns the sum. out may
// be x.
double exp2_shifted(const float* x, std::int32_t n, float shift, float scale, float* out);

// Sum of the same.
double exp2_sum(const float* x, std::int32_t n, float shift, float scale);

// Sum of min(a * x[i], b * y[i]).
double overlap(const float* x, float a, const float* y, float b, std::int32_t n);

// out[i] = max(a * x[i] - b * y[i], 0).
void excess(const float* x, float a, const float* y, float b, std::int32_t n, float* out);

// out[i] = a * x[i].
void scale(const float* x, float a, std::int32_t n, float* out);

// out[i] = (x[i] - zero_point) * scale, rounded once; 0 <= zero_point < 2^16.
void dequantize(const std::uint16_t* x, std::int32_t zero_point, float scale, std::int32_t n,
                float* out);

// out[i] = the number that the bits x[i] are as an IEEE 754 half.
void widen_halves(const std::uint16_t* x, std::int32_t n, float* out);

// Writes those x[i] with low <= x[i] < high, in their order; returns how many. out has room for n
// and may be x.
std::int32_t in_range(const float* x, std::int32_t n, float low, float high, float* out);

// Writes the indices i with x[i] >= threshold, ascending, given x's maxima(); returns how many. out
// has room for n and kAtLeastSpare more, where anything may stand afterwards.
constexpr std::int32_t kAtLeastSpare = 4;
std::int32_t at_least(const float* x, std::int32_t n, float threshold, const float* maxima,
                      std::int32_t* out);

// out[i] = the race's random word of id first + i at (seed, position); first and n are multiples
// of 32.
void race_words(std::uint64_t seed, std::uint64_t position, std::int32_t first, std::int32_t n,
                std::uint32_t* out);

// Puts what exceeds best[m - 1] of the scores weights[i] / E[i] into best[m], as index first + i;
// E[i] is the Exp(1) variate that words[i] stands for. Equal scores stay in their order.
void race(const float* weights, const std::uint32_t* words, std::int32_t n, std::int32_t first,
          Ranked* best, std::int32_t m);

// The same of the weights that exp2_shifted(x, n, shift, scale) would give, without making those
// that cannot win.
void race_exp2(const float* x, float shift, float scale, const std::uint32_t* words,
               std::int32_t n, std::int32_t first, Ranked* best, std::int32_t m);

}  // namespace kernels
}  // namespace specdec
