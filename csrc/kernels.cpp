#include "kernels.h"

#include <algorithm>
#include <limits>

#include "clones.h"
#include "exp2.h"
#include "lanes.h"

namespace specdec::kernels {
namespace {

using lanes::all;
using lanes::any;
using lanes::bits_as;
using lanes::bytes_of;
using lanes::convert;
using lanes::count_bits;
using lanes::Doubles;
using lanes::exp2_nonpositive;
using lanes::Floats;
using lanes::Ints;
using lanes::kWide;
using lanes::kWidth;
using lanes::load;
using lanes::load_sixteen;
using lanes::load_part;
using lanes::load_wide;
using lanes::lowest_bit;
using lanes::select;
using lanes::split;
using lanes::store;
using lanes::store_part;
using lanes::WideFloats;
using lanes::Words;

constexpr std::int32_t kPair = 2 * kWidth;
constexpr std::int32_t kStep = 8 * kWidth;  // searched at once, and mostly without a hit
constexpr std::int32_t kBlock = 1024;  // floats added in single precision before going to double
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Sum over i < n of term(part), where part(x) gives the lanes of x at hand.
template <class Term>
SPECDEC_INLINE double sum_of(std::int32_t n, const Term& term) {
  double total = 0;
  for (std::int32_t begin = 0; begin < n; begin += kBlock) {
    const std::int32_t end = std::min(n, begin + kBlock);
    WideFloats pair{};
    std::int32_t i = begin;
    for (; i + kWide <= end; i += kWide) {
      pair = pair + term(i, [](const float* x) SPECDEC_INLINE_LAMBDA { return load_sixteen(x); });
    }
    Floats a;
    Floats b;
    split(pair, a, b);
    for (; i < end; i += kWidth) {
      const std::int32_t count = std::min(kWidth, end - i);
      if (count == kWidth) {
        a = a + term(i, [](const float* x) SPECDEC_INLINE_LAMBDA { return load(x); });
      } else {
        const auto part = [count](const float* x) SPECDEC_INLINE_LAMBDA {
          return load_part(x, count);
        };
        b = b + term(i, part);
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

// Which of the kMaximaBlock values are at least the bar: bit i for x[i].
SPECDEC_INLINE std::uint64_t hits_of(const float* x, const Floats& bar) {
  static_assert(kMaximaBlock == kWidth * kWidth);
  Ints bits{};
  for (int part = 0; part < kWidth; ++part) {
    bits = bits | select(load(x + part * kWidth) >= bar, all<Ints>(1 << part), Ints{});
  }
  // Bit p of byte j is that of value 8 * p + j: bits of bytes change places with bytes.
  std::uint64_t hits = bytes_of(bits);
  const auto swap = [&](std::uint64_t mask, int distance) {
    const std::uint64_t differ = (hits ^ (hits >> distance)) & mask;
    hits ^= differ ^ (differ << distance);
  };
  swap(0x00AA00AA00AA00AAu, 7);
  swap(0x0000CCCC0000CCCCu, 14);
  swap(0x00000000F0F0F0F0u, 28);
  return hits;
}

// Writes first + i for each bit i that is set, ascending; returns how many. The first few are
// written whether there are as many or not, for there mostly are no more.
SPECDEC_INLINE std::int32_t write_bits(std::uint64_t bits, std::int32_t first, std::int32_t* out) {
  constexpr std::uint64_t kLast = std::uint64_t{1} << 63;  // so that there is one
  const std::int32_t count = count_bits(bits);
  std::int32_t i = 0;
  for (; i < kAtLeastSpare; ++i, bits &= bits - 1) out[i] = first + lowest_bit(bits | kLast);
  for (; i < count; ++i, bits &= bits - 1) out[i] = first + lowest_bit(bits);
  return count;
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

}  // namespace

SPECDEC_CLONES
float max(const float* x, std::int32_t n) { return max_of(x, n); }

SPECDEC_CLONES
float maxima(const float* x, std::int32_t n, float* out) {
  static_assert(kMaximaBlock == kStep);
  Ints numbers = all<Ints>(-1);
  const auto of_block = [&](const float* block) {
    Floats greatest = load(block);
    numbers = numbers & (greatest == greatest);
    for (std::int32_t i = kWidth; i < kMaximaBlock; i += kWidth) {
      const Floats value = load(block + i);
      numbers = numbers & (value == value);
      greatest = select(value > greatest, value, greatest);
    }
    store(greatest, out);
    out += kWidth;
  };
  const float* first = out;
  const std::int32_t whole = n - n % kMaximaBlock;
  for (std::int32_t begin = 0; begin < whole; begin += kMaximaBlock) of_block(x + begin);
  if (whole < n) {
    float rest[kMaximaBlock];
    std::fill_n(rest, kMaximaBlock, -kInfinity);
    std::copy_n(x + whole, n - whole, rest);
    of_block(rest);
  }
  for (int j = 0; j < kWidth; ++j) {
    if (numbers[j] == 0) return std::numeric_limits<float>::quiet_NaN();
  }
  return max_of(first, static_cast<std::int32_t>(out - first));
}

SPECDEC_CLONES
std::int32_t count_at_least(const float* x, std::int32_t n, float threshold) {
  const Floats bar = all<Floats>(threshold);
  Ints counts{};
  std::int32_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    counts = counts + select(load(x + i) >= bar, all<Ints>(1), Ints{});
  }
  std::int32_t count = 0;
  for (int j = 0; j < kWidth; ++j) count += counts[j];
  for (; i < n; ++i) count += x[i] >= threshold ? 1 : 0;
  return count;
}

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
void top(const float* x, std::int32_t n, std::int32_t first, Ranked* best, std::int32_t m) {
  for (std::int32_t begin = 0; begin < n; begin += kStep) {
    const std::int32_t end = std::min(n, begin + kStep);
    if (end - begin == kStep) {
      const Floats bar = all<Floats>(best[m - 1].value);
      Ints passed{};
      for (std::int32_t i = begin; i < end; i += kWidth) passed = passed | (load(x + i) > bar);
      if (!any(passed)) continue;  // nearly always
    }
    for (std::int32_t i = begin; i < end; ++i) {
      if (x[i] > best[m - 1].value) rank(best, m, {x[i], first + i});
    }
  }
}

SPECDEC_CLONES
double sum(const float* x, std::int32_t n) {
  return sum_of(n, [=](std::int32_t i, auto part) SPECDEC_INLINE_LAMBDA { return part(x + i); });
}

SPECDEC_CLONES
double sum_at_least(const float* x, std::int32_t n, float threshold) {
  const Floats bar = all<Floats>(threshold);
  Doubles sums{};
  const auto add = [&](const Floats& values) {
    sums = sums + convert<Doubles>(select(values >= bar, values, Floats{}));
  };
  std::int32_t i = 0;
  for (; i + kWidth <= n; i += kWidth) add(load(x + i));
  if (i < n) add(load_part(x + i, n - i));
  double total = 0;
  for (int j = 0; j < kWidth; ++j) total += sums[j];
  return total;
}

SPECDEC_CLONES
double exp2_shifted(const float* x, std::int32_t n, float shift, float scale, float* out) {
  const auto exp = [=](const auto& value) { return exp2_nonpositive((value - shift) * scale); };
  double total = 0;
  for (std::int32_t begin = 0; begin < n; begin += kBlock) {
    const std::int32_t end = std::min(n, begin + kBlock);
    WideFloats pair{};
    std::int32_t i = begin;
    for (; i + kWide <= end; i += kWide) {
      const WideFloats values = exp(load_sixteen(x + i));
      store(values, out + i);
      pair = pair + values;
    }
    Floats a;
    Floats b;
    split(pair, a, b);
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
double exp2_sum(const float* x, std::int32_t n, float shift, float scale) {
  const std::int32_t whole = n - n % kWidth;
  const double total = sum_of(whole, [=](std::int32_t i, auto part) SPECDEC_INLINE_LAMBDA {
    return exp2_nonpositive((part(x + i) - shift) * scale);
  });
  const Floats last = exp2_nonpositive((load_part(x + whole, n - whole) - shift) * scale);
  float sum = 0;
  for (int j = 0; j < n - whole; ++j) sum += last[j];
  return total + sum;
}

SPECDEC_CLONES
double overlap(const float* x, float a, const float* y, float b, std::int32_t n) {
  return sum_of(n, [=](std::int32_t i, auto part) SPECDEC_INLINE_LAMBDA {
    const auto p = part(x + i) * a;
    const auto q = part(y + i) * b;
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
std::int32_t in_range(const float* x, std::int32_t n, float low, float high, float* out) {
  const Floats bottom = all<Floats>(low);
  const Floats top = all<Floats>(high);
  std::int32_t count = 0;
  for (std::int32_t begin = 0; begin < n; begin += kWidth) {
    const std::int32_t end = std::min(n, begin + kWidth);
    if (end - begin == kWidth) {
      const Floats values = load(x + begin);
      if (!any((values >= bottom) & (values < top))) continue;
    }
    for (std::int32_t i = begin; i < end; ++i) {
      const float value = x[i];
      out[count] = value;
      count += (value >= low ? 1 : 0) & (value < high ? 1 : 0);
    }
  }
  return count;
}

SPECDEC_CLONES
std::int32_t at_least(const float* x, std::int32_t n, float threshold, const float* maxima,
                      std::int32_t* out) {
  // Whether a block has a hit is as good as random: asked one by one, a processor would guess many
  // of the answers wrong. So blocks with a hit are listed first, without a branch.
  constexpr std::int32_t kList = 512;
  const Floats bar = all<Floats>(threshold);
  std::int32_t list[kList];
  std::int32_t count = 0;
  for (std::int32_t next = 0; next < n;) {
    const std::int32_t end = n - next < kList * kMaximaBlock ? n : next + kList * kMaximaBlock;
    std::int32_t listed = 0;
    for (; next < end; next += kMaximaBlock) {
      list[listed] = next;
      listed += any(load(maxima + next / kMaximaBlock * kWidth) >= bar) ? 1 : 0;
    }
    for (std::int32_t entry = 0; entry < listed; ++entry) {
      const std::int32_t begin = list[entry];
      float rest[kMaximaBlock];
      const float* block = x + begin;
      if (n - begin < kMaximaBlock) {  // what there is not is no number, which reaches no bar
        std::fill_n(rest, kMaximaBlock, std::numeric_limits<float>::quiet_NaN());
        std::copy_n(block, n - begin, rest);
        block = rest;
      }
      count += write_bits(hits_of(block, bar), begin, out + count);
    }
  }
  return count;
}

}  // namespace specdec::kernels
