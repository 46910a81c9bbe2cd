#pragma once

// The loops of attention. To be included by the attention_*.cpp, behind vectors_*.h and these, which
// differ between instruction sets (attention_plain.cpp says what they do):
//   load_part, keep_part, fold_four, fold_quarters, kScoredItems, kMixedItems, kMixedVectors

#include "attention_kernels.h"
#include "vector_math.h"

// Inlined into one large function, loops are left too few registers.
#if defined(__GNUC__)
#define SPECDEC_OPS_APART __attribute__((noinline))
#else
#define SPECDEC_OPS_APART
#endif

namespace specdec::ops {
namespace {

constexpr std::int32_t kLanes = 16;
constexpr std::int32_t kScoreRow = kAttentionChunk + kLanes;  // a tile may start at any column

inline std::int32_t smaller_of(std::int32_t a, std::int32_t b) { return a < b ? a : b; }
inline std::int32_t greater_of(std::int32_t a, std::int32_t b) { return a > b ? a : b; }

void rotate(const float* x, const float* cosine, const float* sine, std::int32_t head_dim,
            float scale, float* out) {
  const std::int32_t half = head_dim / 2;
  const Floats factor = all(scale);
  for (std::int32_t i = 0; i < half; i += kLanes) {
    const std::int32_t n = smaller_of(kLanes, half - i);
    const Floats a = load_part(x + i, n);
    const Floats b = load_part(x + half + i, n);
    const Floats c = load_part(cosine + i, n);
    const Floats s = load_part(sine + i, n);
    const Floats first = fma(subtract(all(0.0f), b), s, multiply(a, c));
    const Floats second = fma(a, s, multiply(b, c));
    store_part(multiply(first, factor), out + i, n);
    store_part(multiply(second, factor), out + half + i, n);
  }
}

inline void fetch(const float* x) {
#if defined(__GNUC__)
  __builtin_prefetch(x, 0, 2);  // not to the nearest cache: a chunk would push itself out of it
#else
  static_cast<void>(x);
#endif
}

// out[r][0..15] = the products of kItems queries with 16 keys. kVectors: head_dim / 16, or 0 where it
// is known at run time only. ahead: the next 16 keys, null: nothing is to be brought near. (Values
// are left to the hardware: asked for too, they crowd out the keys.)
template <int kItems, int kVectors>
inline void score_tile(const float* const* keys, std::int32_t head_dim,
                       const float* const* queries, float* const* out, const float* ahead) {
  const std::int32_t vectors = kVectors > 0 ? kVectors : head_dim / kLanes;
  const std::int32_t rest = kVectors > 0 ? 0 : head_dim % kLanes;
  Floats quarters[kItems][4];
  for (int first = 0; first < 4; ++first) {
    Floats sum[kItems][4];
    for (int j = 0; j < 4; ++j) {
      const float* key = keys[4 * j + first];
      if (ahead != nullptr) {
        const float* next = ahead + (4 * first + j) * head_dim;
        for (std::int32_t v = 0; v < vectors; ++v) fetch(next + v * kLanes);
      }
      for (int r = 0; r < kItems; ++r) sum[r][j] = all(0.0f);
      for (std::int32_t v = 0; v < vectors; ++v) {
        const Floats part = load(key + v * kLanes);
        for (int r = 0; r < kItems; ++r) {
          sum[r][j] = fma(load(queries[r] + v * kLanes), part, sum[r][j]);
        }
      }
      if (rest > 0) {
        const Floats part = load_part(key + vectors * kLanes, rest);
        for (int r = 0; r < kItems; ++r) {
          sum[r][j] = fma(load(queries[r] + vectors * kLanes), part, sum[r][j]);
        }
      }
    }
    for (int r = 0; r < kItems; ++r) {
      quarters[r][first] = fold_four(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
    }
  }
  for (int r = 0; r < kItems; ++r) {
    const Floats* q = quarters[r];
    store(fold_quarters(q[0], q[1], q[2], q[3]), out[r]);
  }
}

// Takes items one by one and works on as many as fit into registers.
template <int kVectors>
class Scorer {
 public:
  Scorer(const float* const* keys, std::int32_t head_dim, const float* ahead)
      : keys_(keys), head_dim_(head_dim), ahead_(ahead) {}

  void add(const float* query, float* out) {
    queries_[held_] = query;
    out_[held_] = out;
    if (++held_ < kScoredItems) return;
    score_tile<kScoredItems, kVectors>(keys_, head_dim_, queries_, out_, ahead_);
    ahead_ = nullptr;  // once is enough
    held_ = 0;
  }

  void finish() {
    for (int r = 0; r < held_; ++r) {
      score_tile<1, kVectors>(keys_, head_dim_, queries_ + r, out_ + r, ahead_);
      ahead_ = nullptr;
    }
    held_ = 0;
  }

 private:
  const float* const* keys_;
  std::int32_t head_dim_;
  const float* ahead_;
  int held_ = 0;
  const float* queries_[kScoredItems];
  float* out_[kScoredItems];
};

// scores[item][i] = the product of its query with the key of its column begin + i, for all columns
// it sees up to `end`; what lies behind these is undefined.
template <int kVectors>
SPECDEC_OPS_APART void score_chunk(const float* key, std::int32_t head_dim, std::int32_t begin,
                                   std::int32_t end, const AttentionItem* items, std::int32_t n,
                                   float* scores) {
  const auto at = [&](std::int32_t column) {
    return key + static_cast<std::size_t>(column) * static_cast<std::size_t>(head_dim);
  };
  std::int32_t shared = 0;
  for (std::int32_t i = 0; i < n; ++i) shared = greater_of(shared, items[i].contiguous);
  shared = smaller_of(shared, end);
  const float* keys[kLanes];
  for (std::int32_t tile = begin; tile < shared; tile += kLanes) {
    // The last tile reads its last key again: what is behind it may be anybody's.
    for (int j = 0; j < kLanes; ++j) keys[j] = at(smaller_of(tile + j, shared - 1));
    // Nothing behind the last is to be read.
    const float* ahead = shared < kLanes ? nullptr : at(smaller_of(tile + kLanes, shared - kLanes));
    Scorer<kVectors> scorer(keys, head_dim, ahead);
    for (std::int32_t i = 0; i < n; ++i) {
      if (items[i].contiguous <= tile) continue;
      scorer.add(items[i].query, scores + i * kScoreRow + (tile - begin));
    }
    scorer.finish();
  }
  for (std::int32_t first = 0; first < n;) {
    const AttentionItem& item = items[first];
    std::int32_t after = first + 1;  // the heads of a row share its path
    while (after < n && items[after].tail == item.tail &&
           items[after].contiguous == item.contiguous && items[after].visible == item.visible) {
      ++after;
    }
    const std::int32_t stop = smaller_of(end, item.visible);
    for (std::int32_t tile = greater_of(begin, item.contiguous); tile < stop; tile += kLanes) {
      for (int j = 0; j < kLanes; ++j) {
        keys[j] = at(item.tail[smaller_of(tile + j, stop - 1) - item.contiguous]);
      }
      Scorer<kVectors> scorer(keys, head_dim, nullptr);
      for (std::int32_t i = first; i < after; ++i) {
        scorer.add(items[i].query, scores + i * kScoreRow + (tile - begin));
      }
      scorer.finish();
    }
    first = after;
  }
}

// Turns n scores into exp(score - greatest), zeros up to a multiple of 16.
void weigh(float* scores, std::int32_t n, float& greatest, float& total) {
  const std::int32_t whole = n / kLanes * kLanes;
  const std::int32_t rest = n - whole;
  Floats most = all(scores[0]);
  for (std::int32_t i = 0; i < whole; i += kLanes) most = greater(load(scores + i), most);
  if (rest > 0) most = greater(keep_part(load(scores + whole), rest, most), most);
  greatest = fold_greater(most);
  const Floats shift = all(greatest);
  Floats sum = all(0.0f);
  for (std::int32_t i = 0; i < whole; i += kLanes) {
    const Floats weight = exp(subtract(load(scores + i), shift));
    store(weight, scores + i);
    sum = add(sum, weight);
  }
  if (rest > 0) {
    const Floats weight = keep_part(exp(subtract(load(scores + whole), shift)), rest,
                                    all(0.0f));
    store(weight, scores + whole);
    sum = add(sum, weight);
  }
  total = fold_add(sum);
}

// sum[r] += weights[r][i] * values[i][16 * kVectors], i ascending. A row of values is `stride` apart.
template <int kItems, int kVectors>
inline void mix(const float* values, std::int32_t stride, std::int32_t n,
                const float* const* weights, Floats (&sum)[kItems][kVectors]) {
  for (std::int32_t i = 0; i < n; ++i) {
    Floats value[kVectors];
    for (int v = 0; v < kVectors; ++v) value[v] = load(values + v * kLanes);
    for (int r = 0; r < kItems; ++r) {
      const Floats weight = all(weights[r][i]);
      for (int v = 0; v < kVectors; ++v) sum[r][v] = fma(weight, value[v], sum[r][v]);
    }
    values += stride;
  }
}

// The weighted sums of kItems items: 16 * kVectors elements of each head from `offset` on.
template <int kItems, int kVectors>
SPECDEC_OPS_APART void mix_items(const float* value, std::int32_t head_dim, std::int32_t offset, std::int32_t begin,
               std::int32_t end, const AttentionItem* items, const float* scores,
               const AttentionSum* sums) {
  const auto at = [&](std::int32_t column) {
    return value + static_cast<std::size_t>(column) * static_cast<std::size_t>(head_dim) + offset;
  };
  std::int32_t shared = end;
  const float* weights[kItems];
  for (int r = 0; r < kItems; ++r) {
    shared = smaller_of(shared, items[r].contiguous);
    weights[r] = scores + r * kScoreRow;
  }
  shared = greater_of(shared, begin);
  Floats sum[kItems][kVectors];
  for (int r = 0; r < kItems; ++r) {
    for (int v = 0; v < kVectors; ++v) sum[r][v] = all(0.0f);
  }
  mix<kItems, kVectors>(at(begin), head_dim, shared - begin, weights, sum);
  for (int r = 0; r < kItems; ++r) {
    float* mixed = sums[r].mixed + offset;
    for (int v = 0; v < kVectors; ++v) store(sum[r][v], mixed + v * kLanes);
  }
  for (int r = 0; r < kItems; ++r) {
    const AttentionItem& item = items[r];
    const std::int32_t stop = smaller_of(end, item.visible);
    if (shared >= stop) continue;
    float* mixed = sums[r].mixed + offset;
    Floats own[1][kVectors];
    for (int v = 0; v < kVectors; ++v) own[0][v] = load(mixed + v * kLanes);
    for (std::int32_t i = shared; i < stop; ++i) {
      const std::int32_t column = i < item.contiguous ? i : item.tail[i - item.contiguous];
      const float* weight = weights[r] + (i - begin);
      mix<1, kVectors>(at(column), 0, 1, &weight, own);
    }
    for (int v = 0; v < kVectors; ++v) store(own[0][v], mixed + v * kLanes);
  }
}

// The same of the last `rest` < 16 elements of one head.
void mix_rest(const float* value, std::int32_t head_dim, std::int32_t rest, std::int32_t begin,
              std::int32_t end, const AttentionItem& item, const float* weights, float* mixed) {
  const std::int32_t stop = smaller_of(end, item.visible);
  const std::int32_t offset = head_dim - rest;
  Floats sum = all(0.0f);
  for (std::int32_t i = begin; i < stop; ++i) {
    const std::int32_t column = i < item.contiguous ? i : item.tail[i - item.contiguous];
    const float* from =
        value + static_cast<std::size_t>(column) * static_cast<std::size_t>(head_dim) + offset;
    sum = fma(all(weights[i - begin]), load_part(from, rest), sum);
  }
  store_part(sum, mixed + offset, rest);
}

template <int kItems>
void mix_block(const float* value, std::int32_t head_dim, std::int32_t begin, std::int32_t end,
               const AttentionItem* items, const float* scores, const AttentionSum* sums) {
  std::int32_t offset = 0;
  for (; offset + kMixedVectors * kLanes <= head_dim; offset += kMixedVectors * kLanes) {
    mix_items<kItems, kMixedVectors>(value, head_dim, offset, begin, end, items, scores, sums);
  }
  for (; offset + kLanes <= head_dim; offset += kLanes) {
    mix_items<kItems, 1>(value, head_dim, offset, begin, end, items, scores, sums);
  }
  if (offset == head_dim) return;
  for (int r = 0; r < kItems; ++r) {
    mix_rest(value, head_dim, head_dim - offset, begin, end, items[r], scores + r * kScoreRow,
             sums[r].mixed);
  }
}

void mix_all(const float* value, std::int32_t head_dim, std::int32_t begin, std::int32_t end,
             const AttentionItem* items, std::int32_t n, const float* scores,
             const AttentionSum* sums) {
  const auto mix_from = [&](auto block, std::int32_t i) {
    block(value, head_dim, begin, end, items + i, scores + i * kScoreRow, sums + i);
  };
  std::int32_t i = 0;
  for (; i + kMixedItems <= n; i += kMixedItems) mix_from(mix_block<kMixedItems>, i);
  if constexpr (kMixedItems > 3) {
    if (i + 3 <= n) {
      mix_from(mix_block<3>, i);
      i += 3;
    }
  }
  if constexpr (kMixedItems > 2) {
    if (i + 2 <= n) {
      mix_from(mix_block<2>, i);
      i += 2;
    }
  }
  for (; i < n; ++i) mix_from(mix_block<1>, i);
}

void sum_chunk(const float* key, const float* value, std::int32_t head_dim, std::int32_t chunk,
               const AttentionItem* items, std::int32_t n, const AttentionSum* sums) {
  alignas(64) float scores[kAttentionItems * kScoreRow];
  const std::int32_t begin = chunk * kAttentionChunk;
  const std::int32_t end = begin + kAttentionChunk;
  switch (head_dim) {
    case 64:
      score_chunk<4>(key, head_dim, begin, end, items, n, scores);
      break;
    case 128:
      score_chunk<8>(key, head_dim, begin, end, items, n, scores);
      break;
    default:
      score_chunk<0>(key, head_dim, begin, end, items, n, scores);
  }
  for (std::int32_t i = 0; i < n; ++i) {
    weigh(scores + i * kScoreRow, smaller_of(end, items[i].visible) - begin, *sums[i].greatest,
          *sums[i].total);
  }
  mix_all(value, head_dim, begin, end, items, n, scores, sums);
}

void merge(const AttentionSum& into, const AttentionSum& next, std::int32_t head_dim) {
  const bool rises = *next.greatest > *into.greatest;
  const float least = rises ? *into.greatest : *next.greatest;
  const float most = rises ? *next.greatest : *into.greatest;
  alignas(64) float lanes[kLanes];
  store(exp(all(least - most)), lanes);
  const Floats before = all(rises ? lanes[0] : 1.0f);
  const Floats after = all(rises ? 1.0f : lanes[0]);
  *into.greatest = most;
  store(fma(all(*next.total), after, multiply(all(*into.total), before)), lanes);
  *into.total = lanes[0];
  for (std::int32_t i = 0; i < head_dim; i += kLanes) {
    const std::int32_t n = smaller_of(kLanes, head_dim - i);
    const Floats old = multiply(load_part(into.mixed + i, n), before);
    store_part(fma(load_part(next.mixed + i, n), after, old), into.mixed + i, n);
  }
}

void finish(const AttentionSum& sum, std::int32_t head_dim) {
  const Floats total = all(*sum.total);
  for (std::int32_t i = 0; i < head_dim; i += kLanes) {
    const std::int32_t n = smaller_of(kLanes, head_dim - i);
    store_part(divide(load_part(sum.mixed + i, n), total), sum.mixed + i, n);
  }
}

constexpr AttentionKernels kKernels = {rotate, sum_chunk, merge, finish};

}  // namespace
}  // namespace specdec::ops
