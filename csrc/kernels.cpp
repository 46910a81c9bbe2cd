#include "kernels.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "noise.h"
#include "philox.h"

// Sanitizers start after the loader chooses between clones, and would crash in that choice.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_UNDEFINED__)
#define SPECDEC_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SPECDEC_CLONES
#endif

namespace specdec::kernels {
namespace {

constexpr std::int32_t kLanes = 16;
constexpr std::int32_t kBlock = 1024;  // floats added in single precision before going to double

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// exp(x) for x <= 0 with a relative error below 2e-7; 0 below -87 (and for -inf).
inline float exp_nonpositive(float x) {
  const float clamped = x < -87.0f ? -87.0f : x;
  const float shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23 rounds to an integer
  const float n = shifted - 12582912.0f;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // The low bits of `shifted` hold n; the shift drops all others. NaN passes through p.
  const std::uint32_t exponent = (bits_as<std::uint32_t>(shifted) << 23) + (127u << 23);
  const float value = p * bits_as<float>(exponent);
  return x < -87.0f ? 0.0f : value;
}

// -log(1 - f) for f = (word + 1/2) / 2^32. Near f = 0 the result is as exact as f itself, so that
// the greatest scores of the race, which decide it, are not rounded away.
inline float exponential(std::uint32_t word) {
  const float f = (static_cast<float>(word >> 8) * 256.0f +
                   static_cast<float>(word & 255u) + 0.5f) * 0x1p-32f;
  const std::uint32_t mirrored = ~word;
  const float u = (static_cast<float>(mirrored >> 8) * 256.0f +
                   static_cast<float>(mirrored & 255u) + 0.5f) * 0x1p-32f;
  // u = m * 2^e with m in [sqrt(1/2), sqrt(2)); where e is 0, m - 1 is -f without rounding.
  const auto bits = static_cast<std::int32_t>(bits_as<std::uint32_t>(u));
  const std::int32_t e = (bits - 0x3F3504F3) >> 23;
  const float m = bits_as<float>(bits - e * (1 << 23));
  const float r = e == 0 ? -f : m - 1.0f;
  float p = 7.0376836292e-2f;
  p = p * r - 1.1514610310e-1f;
  p = p * r + 1.1676998740e-1f;
  p = p * r - 1.2420140846e-1f;
  p = p * r + 1.4249322787e-1f;
  p = p * r - 1.6668057665e-1f;
  p = p * r + 2.0000714765e-1f;
  p = p * r - 2.4999993993e-1f;
  p = p * r + 3.3333331174e-1f;
  const float square = r * r;
  const float log1p = r + (p * r * square - 0.5f * square);
  return -(log1p + static_cast<float>(e) * 0.693147181f);
}

}  // namespace

SPECDEC_CLONES
float max(const float* x, std::int32_t n) {
  float lane[kLanes];
  // Not x[0]: were that NaN, it would hide all others.
  for (float& value : lane) value = -std::numeric_limits<float>::infinity();
  std::int32_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::int32_t j = 0; j < kLanes; ++j) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
  }
  for (; i < n; ++i) lane[0] = x[i] > lane[0] ? x[i] : lane[0];
  float best = lane[0];
  for (const float value : lane) best = value > best ? value : best;
  return best;
}

std::int32_t argmax(const float* x, std::int32_t n) {
  float best = -std::numeric_limits<float>::infinity();
  std::int32_t best_block = 0;
  for (std::int32_t begin = 0; begin < n; begin += kBlock) {
    const float block_max = max(x + begin, std::min(kBlock, n - begin));
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
  double total = 0;
  for (std::int32_t begin = 0; begin < n; begin += kBlock) {
    const std::int32_t end = std::min(n, begin + kBlock);
    float lane[kLanes] = {};
    std::int32_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (std::int32_t j = 0; j < kLanes; ++j) lane[j] += x[i + j];
    }
    for (; i < end; ++i) lane[0] += x[i];
    for (const float value : lane) total += value;
  }
  return total;
}

SPECDEC_CLONES
double exp_shifted(const float* x, std::int32_t n, float shift, float scale, float* out) {
  double total = 0;
  for (std::int32_t begin = 0; begin < n; begin += kBlock) {
    const std::int32_t end = std::min(n, begin + kBlock);
    float lane[kLanes] = {};
    std::int32_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (std::int32_t j = 0; j < kLanes; ++j) {
        const float value = exp_nonpositive((x[i + j] - shift) * scale);
        out[i + j] = value;
        lane[j] += value;
      }
    }
    for (; i < end; ++i) {
      out[i] = exp_nonpositive((x[i] - shift) * scale);
      lane[0] += out[i];
    }
    for (const float value : lane) total += value;
  }
  return total;
}

SPECDEC_CLONES
double overlap(const float* x, float a, const float* y, float b, std::int32_t n) {
  double total = 0;
  for (std::int32_t begin = 0; begin < n; begin += kBlock) {
    const std::int32_t end = std::min(n, begin + kBlock);
    float lane[kLanes] = {};
    std::int32_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (std::int32_t j = 0; j < kLanes; ++j) {
        const float p = a * x[i + j];
        const float q = b * y[i + j];
        lane[j] += p < q ? p : q;
      }
    }
    for (; i < end; ++i) lane[0] += std::min(a * x[i], b * y[i]);
    for (const float value : lane) total += value;
  }
  return total;
}

SPECDEC_CLONES
void excess(const float* x, float a, const float* y, float b, std::int32_t n, float* out) {
  for (std::int32_t i = 0; i < n; ++i) {
    const float difference = a * x[i] - b * y[i];
    out[i] = difference > 0.0f ? difference : 0.0f;
  }
}

SPECDEC_CLONES
void scale(const float* x, float a, std::int32_t n, float* out) {
  for (std::int32_t i = 0; i < n; ++i) out[i] = a * x[i];
}

SPECDEC_CLONES
std::int32_t at_least(const float* x, std::int32_t n, float threshold, std::int32_t* out) {
  std::int32_t count = 0;
  std::int32_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    std::int32_t any = 0;
    for (std::int32_t j = 0; j < kLanes; ++j) any |= x[i + j] >= threshold ? 1 : 0;
    if (any == 0) continue;  // nearly all blocks, after a softmax
    for (std::int32_t j = 0; j < kLanes; ++j) {
      if (x[i + j] >= threshold) out[count++] = i + j;
    }
  }
  for (; i < n; ++i) {
    if (x[i] >= threshold) out[count++] = i;
  }
  return count;
}

SPECDEC_CLONES
void exponentials(std::uint64_t seed, std::uint64_t position, const std::int32_t* ids,
                  std::int32_t first, std::int32_t n, float* out) {
  constexpr auto purpose = static_cast<std::uint32_t>(Purpose::race);
  const auto low = static_cast<std::uint32_t>(position);
  const auto high = static_cast<std::uint32_t>(position >> 32);
  std::uint32_t words[4][kLanes];
  if (ids == nullptr) {
    for (std::int32_t begin = 0; begin < n; begin += 4 * kLanes) {
      const auto block = static_cast<std::uint32_t>(first + begin) / 4;
      for (std::int32_t j = 0; j < kLanes; ++j) {
        const PhiloxWords w =
            philox(block + static_cast<std::uint32_t>(j), purpose, low, high, seed);
        for (int k = 0; k < 4; ++k) words[k][j] = w.word[k];
      }
      float values[4][kLanes];
      for (int k = 0; k < 4; ++k) {
        for (std::int32_t j = 0; j < kLanes; ++j) values[k][j] = exponential(words[k][j]);
      }
      const std::int32_t count = std::min(n - begin, 4 * kLanes);
      for (std::int32_t i = 0; i < count; ++i) out[begin + i] = values[i % 4][i / 4];
    }
    return;
  }
  for (std::int32_t begin = 0; begin < n; begin += kLanes) {
    const std::int32_t count = std::min(n - begin, kLanes);
    std::uint32_t id[kLanes] = {};
    for (std::int32_t j = 0; j < count; ++j) id[j] = static_cast<std::uint32_t>(ids[begin + j]);
    std::uint32_t word[kLanes];
    for (std::int32_t j = 0; j < kLanes; ++j) {
      const PhiloxWords w = philox(id[j] / 4, purpose, low, high, seed);
      const std::uint32_t lane = id[j] % 4;
      word[j] = lane < 2 ? (lane == 0 ? w.word[0] : w.word[1])
                         : (lane == 2 ? w.word[2] : w.word[3]);
    }
    float values[kLanes];
    for (std::int32_t j = 0; j < kLanes; ++j) values[j] = exponential(word[j]);
    for (std::int32_t j = 0; j < count; ++j) out[begin + j] = values[j];
  }
}

}  // namespace specdec::kernels
