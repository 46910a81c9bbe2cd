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

}  // namespace
}  // namespace specdec::ops

#include "attention_loops.h"

namespace specdec::ops {

AttentionKernels attention_plain() { return kKernels; }

}  // namespace specdec::ops
