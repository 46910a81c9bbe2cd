#pragma once

// The loops of attention. To be included by the attention_*.cpp, behind vectors_*.h and these, which
// differ between instruction sets (attention_plain.cpp says what they do):
//   load_part, keep_part, kScoredItems, kMixedItems, kMixedVectors

#include "attention_halves.h"
#include "attention_kernels.h"
#include "attention_mix.h"
#include "vector_math.h"

namespace specdec::ops {
namespace {

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

inline void fetch(const std::uint16_t* x) {
#if defined(__GNUC__)
  __builtin_prefetch(x, 0, 2);  // not to the nearest cache: a chunk would push itself out of it
#else
  static_cast<void>(x);
#endif
}

// What is to be brought near while a tile of keys is worked on, each as large as it; null: nothing.
struct Ahead {
  const std::uint16_t* keys = nullptr;    // the tile that follows
  const std::uint16_t* values = nullptr;  // those of the tile's columns
};

// out[r][0..16 * kVectors - 1] = the products of kItems queries with keys of a tile [head_dim, 32], each
// the sum of its elements' in their order.
template <int kItems, int kVectors>
SPECDEC_OPS_APART void score_tile(const std::uint16_t* tile, std::int32_t head_dim,
                                  const float* const* queries, float* const* out,
                                  const Ahead& ahead) {
  Floats sum[kItems][kVectors];
  for (int r = 0; r < kItems; ++r) {
    for (int v = 0; v < kVectors; ++v) sum[r][v] = all(0.0f);
  }
  for (std::int32_t d = 0; d < head_dim; ++d) {
    Floats key[kVectors];
    for (int v = 0; v < kVectors; ++v) key[v] = load(tile + d * kKeyTile + v * kLanes);
    if (ahead.keys != nullptr) fetch(ahead.keys + d * kKeyTile);
    if (ahead.values != nullptr) fetch(ahead.values + d * kKeyTile);
    for (int r = 0; r < kItems; ++r) {
      const Floats query = all(queries[r][d]);
      for (int v = 0; v < kVectors; ++v) sum[r][v] = fma(query, key[v], sum[r][v]);
    }
  }
  for (int r = 0; r < kItems; ++r) {
    for (int v = 0; v < kVectors; ++v) store(sum[r][v], out[r] + v * kLanes);
  }
}

// Takes items one by one and works on as many as fit into registers.
class Scorer {
 public:
  // columns: that are wanted of the tile. items: to come, at least.
  Scorer(const std::uint16_t* tile, std::int32_t head_dim, std::int32_t columns, const Ahead& ahead,
         std::int32_t items)
      : tile_(tile),
        head_dim_(head_dim),
        whole_(columns > kLanes),
        more_(items > kScoredItems),
        ahead_(ahead) {}

  void add(const float* query, float* out) {
    queries_[held_] = query;
    out_[held_] = out;
    if (++held_ < kScoredItems) return;
    score<kScoredItems>(0);
    held_ = 0;
  }

  void finish() {
    int r = 0;
    if constexpr (kScoredItems > 3) {
      for (; r + 3 <= held_; r += 3) score<3>(r);
    }
    for (; r < held_; ++r) score<1>(r);
    held_ = 0;
  }

 private:
  template <int kItems>
  void score(int first) {
    // Once is enough, and with more to do not all at a time.
    const Ahead ahead = more_ ? Ahead{ahead_.keys, nullptr} : ahead_;
    const auto score = whole_ ? score_tile<kItems, 2> : score_tile<kItems, 1>;
    score(tile_, head_dim_, queries_ + first, out_ + first, ahead);
    ahead_ = {nullptr, more_ ? ahead_.values : nullptr};
    more_ = false;
  }

  const std::uint16_t* tile_;
  std::int32_t head_dim_;
  bool whole_;  // else the first half
  bool more_;
  Ahead ahead_;
  int held_ = 0;
  const float* queries_[kScoredItems];
  float* out_[kScoredItems];
};

// The heads of a row, which see the same columns: the scores of those that are not contiguous.
void score_tail(const std::uint16_t* key, std::int32_t head_dim, std::int32_t begin,
                std::int32_t end, const AttentionItem* items, std::int32_t n, float* scores) {
  alignas(64) float found[kAttentionItems][kKeyTile];
  const AttentionItem& item = items[0];
  const std::int32_t stop = smaller_of(end, item.visible);
  const auto column = [&](std::int32_t i) { return item.tail[i - item.contiguous]; };
  for (std::int32_t i = greater_of(begin, item.contiguous); i < stop;) {
    const std::int32_t tile = column(i) / kKeyTile;
    Scorer scorer(key_tile(key, head_dim, tile), head_dim, kKeyTile, {}, n);
    for (std::int32_t r = 0; r < n; ++r) scorer.add(items[r].query, found[r]);
    scorer.finish();
    for (; i < stop && column(i) / kKeyTile == tile; ++i) {
      for (std::int32_t r = 0; r < n; ++r) {
        scores[r * kAttentionChunk + (i - begin)] = found[r][column(i) % kKeyTile];
      }
    }
  }
}

// scores[item][i] = the product of its query with the key of its column begin + i, for all columns
// it sees up to `end`; what lies behind these is undefined.
void score_chunk(const std::uint16_t* key, const std::uint16_t* value, const std::uint16_t* next,
                 std::int32_t head_dim, std::int32_t begin, std::int32_t end,
                 const AttentionItem* items, std::int32_t n, float* scores) {
  std::int32_t shared = 0;
  for (std::int32_t i = 0; i < n; ++i) shared = greater_of(shared, items[i].contiguous);
  shared = smaller_of(shared, end);
  for (std::int32_t first = begin; first < shared; first += kKeyTile) {
    const std::uint16_t* tile = key_tile(key, head_dim, first / kKeyTile);
    const std::uint16_t* after = first + kKeyTile < shared ? tile + kKeyTile * head_dim : next;
    Scorer scorer(tile, head_dim, shared - first,
                  {after, value + static_cast<std::size_t>(first) * static_cast<std::size_t>(head_dim)},
                  n);
    for (std::int32_t i = 0; i < n; ++i) {
      if (items[i].contiguous <= first) continue;
      scorer.add(items[i].query, scores + i * kAttentionChunk + (first - begin));
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
    score_tail(key, head_dim, begin, end, items + first, after - first,
               scores + first * kAttentionChunk);
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

void sum_chunk(const std::uint16_t* key, const std::uint16_t* value, std::int32_t head_dim,
               std::int32_t chunk, const AttentionItem* items, std::int32_t n,
               const AttentionSum* sums, const std::uint16_t* next) {
  alignas(64) float scores[kAttentionItems * kAttentionChunk];
  const std::int32_t begin = chunk * kAttentionChunk;
  const std::int32_t end = begin + kAttentionChunk;
  score_chunk(key, value, next, head_dim, begin, end, items, n, scores);
  for (std::int32_t i = 0; i < n; ++i) {
    weigh(scores + i * kAttentionChunk, smaller_of(end, items[i].visible) - begin, *sums[i].greatest,
          *sums[i].total);
  }
  mix_chunk(value, head_dim, begin, end, items, n, scores, sums);
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

constexpr AttentionKernels kKernels = {rotate, halve, sum_chunk, merge, finish};

}  // namespace
}  // namespace specdec::ops
