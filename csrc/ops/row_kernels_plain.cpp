#include <cmath>

#include "row_kernels.h"
#include "vectors_plain.h"
// Behind vectors_plain.h:
#include "block_scales_plain.h"
#include "row_algorithms.h"

namespace specdec::ops {
namespace {

// code(block, g, output, j) gives the code of input 4g + j.
template <class Code>
void dots(const TileAndGroup& at, std::int64_t block, int rows, int row, const Code& code,
          std::int32_t (&dot)[kTile]) {
  const std::int8_t* x = at.x + (block * rows + row) * kBlock;
  for (int c = 0; c < kTile; ++c) {
    std::int32_t sum = 0;
    for (int i = 0; i < kBlock; ++i) sum += code(i / 4, c, i % 4) * x[i];
    dot[c] = sum;
  }
}

template <class BlockScales, int kRows>
void product4(const TileAndGroup& at, float* sums) {
  for (int r = 0; r < kRows; ++r) {
    const std::uint16_t* scales = at.scales;
    const BlockScales kept(scales);
    float* total = sums + r * kTile;
    for (int c = 0; c < kTile; ++c) total[c] = 0;
    for (std::int64_t block = 0; block < at.blocks; ++block, scales += BlockScales::kWords) {
      const std::uint8_t* codes = at.codes + block * 256;
      std::int32_t dot[kTile];
      dots(at, block, kRows, r, [&](int g, int c, int j) {
        const int both = codes[(g % 4) * 64 + c * 4 + j];
        return g < 4 ? both & 15 : both >> 4;
      }, dot);
      const std::int64_t row = block * kRows + r;
      const std::int32_t sum = at.shifted_sums[row] / -128;
      for (int c = 0; c < kTile; ++c) {
        total[c] = BlockScales::add(total[c], kept.of(scales, c), at.s[row], sum, dot[c]);
      }
    }
    for (int c = 0; c < kTile; ++c) total[c] = kept.finish(total[c], c);
  }
}

// `passes` times `wide` blocks of 8 bits, and the others of 6.
template <int kRows>
void product8_and_6(const TileAndGroup& at, std::int64_t wide, std::int64_t passes, float* sums) {
  for (int r = 0; r < kRows; ++r) {
    const std::uint8_t* codes = at.codes;
    const std::uint8_t* fine = at.fine;
    const std::uint16_t* scales = at.scales;
    float* total = sums + r * kTile;
    for (int c = 0; c < kTile; ++c) total[c] = 0;
    for (std::int64_t block = 0; block < at.blocks; ++block, scales += kTile) {
      std::int32_t dot[kTile];
      if (block == wide && passes == 2) {
        codes = at.codes;
        scales = at.scales;
      }
      if (block < passes * wide) {
        dots(at, block, kRows, r,
             [&](int g, int c, int j) { return codes[g * 64 + c * 4 + j] - 128; }, dot);
        codes += 512;
      } else {
        dots(at, block, kRows, r, [&](int g, int c, int j) {
          const int line = g % 4, byte = c * 4 + j;
          const int upper = codes[line * 64 + byte] >> (g < 4 ? 0 : 4) & 15;
          const int lower = fine[line / 2 * 64 + byte] >> (line % 2 * 4 + (g < 4 ? 0 : 2)) & 3;
          return 4 * upper + lower - 32;
        }, dot);
        codes += 256;
        fine += 128;
      }
      const float s = at.s[block * kRows + r];
      for (int c = 0; c < kTile; ++c) {
        total[c] = std::fma(s * float_of_half(scales[c]), static_cast<float>(dot[c]), total[c]);
      }
    }
  }
}

}  // namespace
}  // namespace specdec::ops

#include "row_table.h"

namespace specdec::ops {
const RowKernels& plain_row_kernels() { return kRowKernels; }
}  // namespace specdec::ops
