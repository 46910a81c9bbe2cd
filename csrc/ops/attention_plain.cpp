#include "vectors_plain.h"

// What attention needs of sixteen floats beside the functions of vectors_plain.h.

namespace specdec::ops {
namespace {

constexpr int kScoredItems = 1;   // queries that are multiplied with a tile of keys at once
constexpr int kMixedItems = 1;    // items whose weighted sums are kept in registers at once
constexpr int kMixedVectors = 1;  // and of each so many times 16 elements

// The first `count`, 1 to 16, and zeros; nothing is read behind them.
inline Floats load_part(const float* x, int count) {
  return by_lanes([&](int i) { return i < count ? x[i] : 0.0f; });
}
// The first `count`, 1 to 16, of x; the others of y.
inline Floats keep_part(const Floats& x, int count, const Floats& y) {
  return by_lanes([&](int i) { return i < count ? x.lane[i] : y.lane[i]; });
}

// fold_add of sixteen vectors, in two steps. With x the i-th of a, b, c, d, lane 4 * i + l of
// fold_four is the sum of the lanes l, l + 8, l + 4 and l + 12 of x, as fold_add takes it. From four
// of those, lane 4 * i + l of fold_quarters is the sum of the lanes 4 * i ... 4 * i + 3 of the l-th.
// So fold_add of vectors 0 to 15 is fold_quarters of the fold_four of 0, 4, 8 and 12, of 1, 5, 9 and
// 13, and so on.
inline Floats fold_four(const Floats& a, const Floats& b, const Floats& c, const Floats& d) {
  const Floats* const from[4] = {&a, &b, &c, &d};
  return by_lanes([&](int i) {
    const float* x = from[i / 4]->lane + i % 4;
    return (x[0] + x[8]) + (x[4] + x[12]);
  });
}
inline Floats fold_quarters(const Floats& a, const Floats& b, const Floats& c, const Floats& d) {
  const Floats* const from[4] = {&a, &b, &c, &d};
  return by_lanes([&](int i) {
    const float* x = from[i % 4]->lane + i / 4 * 4;
    return (x[0] + x[2]) + (x[1] + x[3]);
  });
}

}  // namespace
}  // namespace specdec::ops

#include "attention_loops.h"

namespace specdec::ops {

AttentionKernels attention_plain() { return kKernels; }

}  // namespace specdec::ops
