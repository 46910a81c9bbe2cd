#include "kernels.h"

#include <algorithm>
#include <limits>

#include "lanes.h"
#include "noise.h"

// Sanitizers start after the loader chooses between clones, and would crash in that choice.
#if defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 12 && defined(__linux__) && \
    !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_UNDEFINED__)
#define SPECDEC_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SPECDEC_CLONES
#endif

namespace specdec::kernels {
namespace {

using lanes::all;
using lanes::any;
using lanes::bits_as;
using lanes::convert;
using lanes::count_up;
using lanes::Floats;
using lanes::Ints;
using lanes::kWidth;
using lanes::load;
using lanes::load_part;
using lanes::load_wide;
using lanes::Longs;
using lanes::select;
using lanes::store;
using lanes::store_part;
using lanes::Words;

constexpr std::int32_t kPair = 2 * kWidth;
constexpr std::int32_t kStep = 8 * kWidth;  // searched at once, and mostly without a hit
constexpr std::int32_t kBlock = 1024;  // floats added in single precision before going to double
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// exp(x) for x <= 0 with a relative error below 2e-7; 0 below -87 (and for -inf).
inline Floats exp_nonpositive(const Floats& x) {
  const Floats least = all<Floats>(-87.0f);
  const Floats clamped = select(x < least, least, x);
  const Floats shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23 rounds to an integer
  const Floats n = shifted - 12582912.0f;
  const Floats r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  // In pairs, not one term after the other: the loop waits for this chain more than for anything.
  const Floats square = r * r;
  const Floats first = r * 1.9875691500e-4f + 1.3981999507e-3f;
  const Floats second = r * 8.3334519073e-3f + 4.1665795894e-2f;
  const Floats third = r * 1.6666665459e-1f + 5.0000001201e-1f;
  const Floats p = ((first * square + second) * square + third) * square + (r + 1.0f);
  // The low bits of `shifted` hold n; the shift drops all others. NaN passes through p.
  const Words exponent = (bits_as<Words>(shifted) << 23) + (127u << 23);
  return select(x < least, Floats{}, p * bits_as<Floats>(exponent));
}

// (word + 1/2) / 2^32, rounded once.
inline Floats unit(const Words& word) {
  const Floats high = convert<Floats>(bits_as<Ints>(word >> 8));
  const Floats low = convert<Floats>(bits_as<Ints>(word & 255u));
  return (high * 256.0f + low + 0.5f) * 0x1p-32f;
}

// -log(1 - f) for f = (word + 1/2) / 2^32. Near f = 0 the result is as exact as f itself, so that
// the greatest scores of the race, which decide it, are not rounded away.
inline Floats exponential(const Words& word) {
  const Floats f = unit(word);
  const Floats u = unit(~word);
  // u = m * 2^e with m in [sqrt(1/2), sqrt(2)); where e is 0, m - 1 is -f without rounding.
  const Ints bits = bits_as<Ints>(u);
  const Ints e = (bits - 0x3F3504F3) >> 23;
  const Floats m = bits_as<Floats>(bits - e * (1 << 23));
  const Floats r = select(e == 0, -f, m - 1.0f);
  Floats p = r * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * r + 1.1676998740e-1f;
  p = p * r - 1.2420140846e-1f;
  p = p * r + 1.4249322787e-1f;
  p = p * r - 1.6668057665e-1f;
  p = p * r + 2.0000714765e-1f;
  p = p * r - 2.4999993993e-1f;
  p = p * r + 3.3333331174e-1f;
  const Floats square = r * r;
  const Floats log1p = r + (p * r * square - square * 0.5f);
  return -(log1p + convert<Floats>(e) * 0.693147181f);
}

// Sum over i < n of term(part), where part(x) gives the lanes of x at hand.
template <class Term>
inline double sum_of(std::int32_t n, const Term& term) {
  double total = 0;
  for (std::int32_t begin = 0; begin < n; begin += kBlock) {
    const std::int32_t end = std::min(n, begin + kBlock);
    Floats a{};
    Floats b{};
    std::int32_t i = begin;
    for (; i + kPair <= end; i += kPair) {
      a = a + term(i, [](const float* x) { return load(x); });
      b = b + term(i + kWidth, [](const float* x) { return load(x); });
    }
    for (; i < end; i += kWidth) {
      const std::int32_t count = std::min(kWidth, end - i);
      if (count == kWidth) {
        a = a + term(i, [](const float* x) { return load(x); });
      } else {
        b = b + term(i, [count](const float* x) { return load_part(x, count); });
      }
    }
    for (int j = 0; j < kWidth; ++j) total += a[j];
    for (int j = 0; j < kWidth; ++j) total += b[j];
  }
  return total;
}

inline float max_of(const float* x, std::int32_t n) {
  // Not from x[0] on: were that NaN, it would hide all others.
  Floats a = all<Floats>(-kInfinity);
  Floats b = a;
  std::int32_t i = 0;
  for (; i + kPair <= n; i += kPair) {
    const Floats first = load(x + i);
    const Floats second = load(x + i + kWidth);
    a = select(first > a, first, a);
    b = select(second > b, second, b);
  }
  float best = -kInfinity;
  for (; i < n; ++i) best = x[i] > best ? x[i] : best;
  a = select(b > a, b, a);
  for (int j = 0; j < kWidth; ++j) best = a[j] > best ? a[j] : best;
  return best;
}

// Halves as the numbers they are. Subnormal halves become whole multiples of 2^-24, without the
// subnormal floats that take many cycles (and that a thread may be set to read as zero).
inline Floats widen(const Words& bits) {
  const Words magnitude = bits & 0x7FFFu;
  const Words sign = (bits & 0x8000u) << 16;
  const Words exponent = all<Words>(112u << 23);  // 127 - 15, the difference of biases
  const Ints special = bits_as<Ints>(magnitude) >= 0x7C00;  // infinite or no number
  const Words normal = (magnitude << 13) + select(special, exponent + exponent, exponent);
  const Words small = bits_as<Words>(convert<Floats>(bits_as<Ints>(magnitude)) * 0x1p-24f);
  return bits_as<Floats>(select(bits_as<Ints>(magnitude) < 0x0400, small, normal) | sign);
}

// out[i] = real(x[i]).
template <class Real>
inline void to_floats(const std::uint16_t* x, std::int32_t n, float* out, const Real& real) {
  for (std::int32_t i = 0; i < n; i += kWidth) {
    const std::int32_t count = std::min(kWidth, n - i);
    if (count == kWidth) {
      store(real(load_wide(x + i, kWidth)), out + i);
    } else {
      store_part(real(load_wide(x + i, count)), out + i, count);
    }
  }
}

// Philox of kWidth successive counters: philox.h, lane by lane.
inline void philox_lanes(std::uint32_t first, std::uint32_t c1, std::uint64_t position,
                         std::uint64_t seed, Words (&word)[4]) {
  constexpr std::uint64_t kLow = 0xFFFFFFFFu;
  Longs w0 = count_up<Longs>() + std::uint64_t{first};
  Longs w1 = all<Longs>(std::uint64_t{c1});
  Longs w2 = all<Longs>(position & kLow);
  Longs w3 = all<Longs>(position >> 32);
  auto k0 = static_cast<std::uint32_t>(seed);
  auto k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const Longs product0 = w0 * std::uint64_t{0xD2511F53u};
    const Longs product1 = w2 * std::uint64_t{0xCD9E8D57u};
    w0 = (product1 >> 32) ^ w1 ^ std::uint64_t{k0};
    w2 = (product0 >> 32) ^ w3 ^ std::uint64_t{k1};
    w1 = product1 & kLow;
    w3 = product0 & kLow;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  word[0] = convert<Words>(w0);
  word[1] = convert<Words>(w1);
  word[2] = convert<Words>(w2);
  word[3] = convert<Words>(w3);
}

}  // namespace

SPECDEC_CLONES
float max(const float* x, std::int32_t n) { return max_of(x, n); }

SPECDEC_CLONES
std::int32_t argmax(const float* x, std::int32_t n) {
  float best = -kInfinity;
  std::int32_t best_block = 0;
  for (std::int32_t begin = 0; begin < n; begin += kBlock) {
    const float block_max = max_of(x + begin, std::min(kBlock, n - begin));
    if (block_max > best) {
      best = block_max;
      best_block = begin;
    }
  }
  const std::int32_t end = std::min(n, best_block + kBlock);
  for (std::int32_t i = best_block; i < end; ++i) {
    if (x[i] == best) return i;
  }
  return 0;  // nothing but NaN and -inf
}

SPECDEC_CLONES
double sum(const float* x, std::int32_t n) {
  return sum_of(n, [=](std::int32_t i, auto part) { return part(x + i); });
}

SPECDEC_CLONES
double sum_at_least(const float* x, std::int32_t n, float threshold) {
  // Outside of the lambda, where GCC would put it together again for every use.
  const Floats bar = all<Floats>(threshold);
  return sum_of(n, [=](std::int32_t i, auto part) {
    const Floats value = part(x + i);
    return select(value >= bar, value, Floats{});
  });
}

SPECDEC_CLONES
double exp_shifted(const float* x, std::int32_t n, float shift, float scale, float* out) {
  const auto exp = [=](const Floats& value) { return exp_nonpositive((value - shift) * scale); };
  double total = 0;
  for (std::int32_t begin = 0; begin < n; begin += kBlock) {
    const std::int32_t end = std::min(n, begin + kBlock);
    Floats a{};
    Floats b{};
    std::int32_t i = begin;
    for (; i + kPair <= end; i += kPair) {
      const Floats first = exp(load(x + i));
      const Floats second = exp(load(x + i + kWidth));
      store(first, out + i);
      store(second, out + i + kWidth);
      a = a + first;
      b = b + second;
    }
    for (; i < end; i += kWidth) {
      const std::int32_t count = std::min(kWidth, end - i);
      const Floats value = exp(load_part(x + i, count));
      store_part(value, out + i, count);
      a = a + load_part(out + i, count);
    }
    for (int j = 0; j < kWidth; ++j) total += a[j];
    for (int j = 0; j < kWidth; ++j) total += b[j];
  }
  return total;
}

SPECDEC_CLONES
double overlap(const float* x, float a, const float* y, float b, std::int32_t n) {
  return sum_of(n, [=](std::int32_t i, auto part) {
    const Floats p = part(x + i) * a;
    const Floats q = part(y + i) * b;
    return select(p < q, p, q);
  });
}

SPECDEC_CLONES
void excess(const float* x, float a, const float* y, float b, std::int32_t n, float* out) {
  std::int32_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const Floats difference = load(x + i) * a - load(y + i) * b;
    store(select(difference > Floats{}, difference, Floats{}), out + i);
  }
  for (; i < n; ++i) out[i] = std::max(a * x[i] - b * y[i], 0.0f);
}

SPECDEC_CLONES
void scale(const float* x, float a, std::int32_t n, float* out) {
  std::int32_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(load(x + i) * a, out + i);
  for (; i < n; ++i) out[i] = a * x[i];
}

SPECDEC_CLONES
void dequantize(const std::uint16_t* x, std::int32_t zero_point, float scale, std::int32_t n,
                float* out) {
  to_floats(x, n, out, [=](const Words& q) {
    return convert<Floats>(bits_as<Ints>(q) - zero_point) * scale;
  });
}

SPECDEC_CLONES
void widen_halves(const std::uint16_t* x, std::int32_t n, float* out) {
  to_floats(x, n, out, [](const Words& bits) { return widen(bits); });
}

SPECDEC_CLONES
std::int32_t at_least(const float* x, std::int32_t n, float threshold, std::int32_t* out) {
  const Floats bar = all<Floats>(threshold);
  std::int32_t count = 0;
  for (std::int32_t begin = 0; begin < n; begin += kStep) {
    const std::int32_t end = std::min(n, begin + kStep);
    if (end - begin == kStep) {
      Ints reached{};
      for (std::int32_t i = begin; i < end; i += kWidth) reached = reached | (load(x + i) >= bar);
      if (!any(reached)) continue;  // most, after a softmax
    }
    for (std::int32_t part = begin; part < end; part += kWidth) {
      const std::int32_t stop = std::min(end, part + kWidth);
      if (stop - part == kWidth && !any(load(x + part) >= bar)) continue;
      for (std::int32_t i = part; i < stop; ++i) {
        out[count] = i;
        count += x[i] >= threshold ? 1 : 0;
      }
    }
  }
  return count;
}

// Id 32 * g + 8 * k + j has word k of counter 8 * g + j: 32 successive ids take all the words of 8
// counters, in the order in which the lanes make them.
SPECDEC_CLONES
void race_words(std::uint64_t seed, std::uint64_t position, std::int32_t first, std::int32_t n,
                std::uint32_t* out) {
  constexpr auto purpose = static_cast<std::uint32_t>(Purpose::race);
  for (std::int32_t begin = 0; begin < n; begin += 4 * kWidth) {
    Words word[4];
    philox_lanes(static_cast<std::uint32_t>(first + begin) / 4, purpose, position, seed, word);
    for (int k = 0; k < 4; ++k) store(word[k], out + begin + k * kWidth);
  }
}

// Losers need no logarithm: E = -log(1 - f) is at least f, so a token can only win if its
// weight / f beats the best so far. The few that pass are compared by their exact scores, hence
// the winner is the one that all exact scores would give.
SPECDEC_CLONES
std::int32_t race(const float* weights, const std::uint32_t* words, std::int32_t n, float& best) {
  // f is cut to 24 bits, and the bar lowered by more than the rounding errors of both scores.
  constexpr float kBar = 0.9999f * 0x1p-24f;
  std::int32_t winner = -1;
  for (std::int32_t begin = 0; begin < n; begin += kStep) {
    const std::int32_t end = std::min(n, begin + kStep);
    float bar = best * kBar;
    if (end - begin == kStep) {
      Ints passed{};
      for (std::int32_t i = begin; i < end; i += kWidth) {
        const Floats f = convert<Floats>(bits_as<Ints>(load(words + i) >> 8));
        passed = passed | (load(weights + i) > f * bar);
      }
      if (!any(passed)) continue;  // nearly always
    }
    for (std::int32_t i = begin; i < end; ++i) {
      if (!(weights[i] > static_cast<float>(words[i] >> 8) * bar)) continue;
      const float score = weights[i] / exponential(all<Words>(words[i]))[0];
      if (!(score > best)) continue;
      best = score;
      bar = best * kBar;
      winner = i;
    }
  }
  return winner;
}

}  // namespace specdec::kernels
