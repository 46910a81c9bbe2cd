#include <algorithm>

#include "clones.h"
#include "exp2.h"
#include "kernels.h"
#include "lanes.h"
#include "noise.h"

namespace specdec::kernels {
namespace {

using lanes::all;
using lanes::any;
using lanes::bits_as;
using lanes::convert;
using lanes::count_up;
using lanes::exp2_bound;
using lanes::exp2_nonpositive;
using lanes::Floats;
using lanes::Ints;
using lanes::kWidth;
using lanes::load;
using lanes::load_part;
using lanes::Longs;
using lanes::select;
using lanes::store;
using lanes::Words;

constexpr std::int32_t kStep = 8 * kWidth;  // searched at once, and mostly without a hit

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

// What the elements of a race are, as weights: themselves, or exponents of 2.
struct Weights {
  SPECDEC_INLINE Floats bound(const Floats& x) const { return x; }
  SPECDEC_INLINE float exact(float x) const { return x; }
};
struct Exponents {
  float shift, scale;
  SPECDEC_INLINE Floats bound(const Floats& x) const { return exp2_bound((x - shift) * scale); }
  SPECDEC_INLINE float exact(float x) const {
    return exp2_nonpositive((all<Floats>(x) - shift) * scale)[0];
  }
};

// Losers need no logarithm: E = -log(1 - f) is at least f, so a token can only win if its
// weight / f beats the best so far. The few that pass are compared by their exact scores, hence
// the winner is the one that all exact scores would give. Nor do they need their exact weight.
template <class Kind>
SPECDEC_INLINE void race_of(const Kind& kind, const float* x, const std::uint32_t* words,
                            std::int32_t n, std::int32_t first, Ranked* best, std::int32_t m) {
  // f is cut to 24 bits, and the bar lowered by more than the rounding errors of scores and bounds.
  constexpr float kBar = 0.9999f * 0x1p-24f;
  for (std::int32_t begin = 0; begin < n; begin += kStep) {
    const std::int32_t end = std::min(n, begin + kStep);
    float bar = best[m - 1].value * kBar;
    if (end - begin == kStep) {
      Ints passed{};
      for (std::int32_t i = begin; i < end; i += kWidth) {
        const Floats f = convert<Floats>(bits_as<Ints>(load(words + i) >> 8));
        passed = passed | (kind.bound(load(x + i)) > f * bar);
      }
      if (!any(passed)) continue;  // nearly always
    }
    for (std::int32_t part = begin; part < end; part += kWidth) {
      const std::int32_t count = std::min(kWidth, end - part);
      const Floats bounds = kind.bound(load_part(x + part, count));
      for (std::int32_t j = 0; j < count; ++j) {
        const std::uint32_t word = words[part + j];
        if (!(bounds[j] > static_cast<float>(word >> 8) * bar)) continue;
        const float score = kind.exact(x[part + j]) / exponential(all<Words>(word))[0];
        if (!(score > best[m - 1].value)) continue;
        rank(best, m, {score, first + part + j});
        bar = best[m - 1].value * kBar;
      }
    }
  }
}

}  // namespace

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

SPECDEC_CLONES
void race(const float* weights, const std::uint32_t* words, std::int32_t n, std::int32_t first,
          Ranked* best, std::int32_t m) {
  race_of(Weights{}, weights, words, n, first, best, m);
}

SPECDEC_CLONES
void race_exp2(const float* x, float shift, float scale, const std::uint32_t* words,
               std::int32_t n, std::int32_t first, Ranked* best, std::int32_t m) {
  race_of(Exponents{shift, scale}, x, words, n, first, best, m);
}

}  // namespace specdec::kernels
