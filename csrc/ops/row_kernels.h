#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "isa.h"

// Products of packed matrices with rows that are rounded to 8 bits: plain functions of memory, one
// table of them for each instruction set.
//
// A row is rounded in blocks of 32: s = max|x| / 127, q = x / s rounded to nearest even. An output is
// the sum over blocks in ascending order, in float:
//   4 bits: acc = fma(s * scale, dot(q, codes), acc); acc = fma(minimum, s * sum(q), acc)
//   8 bits: acc = fma(s * scale, dot(q, codes - 128), acc)
//   6 bits: the same with codes - 32, behind its blocks of 8 bits, which are added twice: of the row,
//     and of what rounding the row left of these blocks, rounded once more
//   4 bits, scales in bytes: acc = fma(s, 16 * a * dot(q, codes - 8) + ratio * b * sum(q), acc), with
//     integers up to the conversion of their sum to float, and acc * unit at the end
// so a row's bits depend on nothing but the row and the matrix.

namespace specdec::ops {

constexpr std::int64_t kBlock = 32;  // inputs with a scale of their own
constexpr std::int64_t kTile = 16;   // outputs side by side
constexpr std::int64_t kGroup = 8;   // rows that share one reading of the weights

// Of 4-bit blocks: how each holds its scale and its minimum.
enum class Scales {
  halves,  // two IEEE halves
  bytes,   // two bytes, in steps that an output has for all of its blocks
};

// codes[tiles, blocks, 256 or 512], scales[tiles, blocks, 2 or 1, 16] (IEEE halves): 4 bits or 8.
// Tile t has outputs 16t to 16t + 15. 8 bits: byte g * 64 + c * 4 + j of a block is the code of output
// 16t + c and input 4g + j. 4 bits: the same, g < 4, in the low half of the byte; input 16 + 4g + j
// in the high half. In scales come the 16 scales, then, for 4 bits, the 16 minima.
//
// Scales in bytes, 4 bits: scales[tiles, 2 + blocks, 16]. First the upper halves of 16 floats, the
// units, and 16 ratios, from 0 to 258; then for each block 16 words, 256 * b + a with a from 0 to 255
// and b from -127 to 127. A weight is unit * (16 * a * (code - 8) + ratio * b): with any input of 8 bits,
// a block's dot(q, codes - 8) and ratio * b fit 16 bits, and the integer that is added 32.
//
// 6 bits: codes[tiles, 512 * wide + 256 * (blocks - wide)], scales[tiles, blocks, 16]. A tile begins with
// `wide` blocks of 8 bits. Of the others codes hold the upper 4 bits, as in 4 bits, and
// fine[tiles, 128 * (blocks - wide)] the lower two: byte 64 h + 4 c + j of a block those of inputs
// 4g + j, 16 + 4g + j (g = 2h), and of the same for g = 2h + 1, from its lowest bits up.
struct Matrix {
  int bits;
  std::int64_t blocks;
  std::int64_t tiles;
  const std::uint8_t* codes;
  const std::uint16_t* scales;
  Scales kind = Scales::halves;
  std::int64_t wide = 0;  // blocks of 8 bits among those of 6
  const std::uint8_t* fine = nullptr;  // null where no block has 6 bits

  std::int64_t row_blocks() const { return blocks + wide; }  // of the rows it is multiplied with
  std::int64_t tile_codes() const {
    if (bits == 6) return wide * 512 + (blocks - wide) * 256;
    return blocks * (bits == 4 ? 256 : 512);
  }
  std::int64_t tile_fine() const { return bits == 6 ? (blocks - wide) * 128 : 0; }
  std::int64_t tile_scales() const {
    if (kind == Scales::bytes) return (2 + blocks) * kTile;
    return blocks * (bits == 4 ? 2 * kTile : kTile);
  }
  std::int64_t tile_bytes() const { return tile_codes() + tile_fine() + 2 * tile_scales(); }
};

// Memory for rounded rows. For a matrix of 6 bits its wide blocks come first, then what rounding left of
// them, then the others. Rows lie in groups of 1 to 8, all of about the same size; a group that
// starts at row f and has n rows is codes[f * blocks * 32 ...] as [blocks, n, 32], and the others
// [f * blocks ...] as [blocks, n].
struct Rows {
  std::int64_t rows;
  std::int64_t blocks;
  std::int8_t* codes;
  float* scales;               // s
  float* scaled_sums;          // s * sum(q)
  std::int32_t* shifted_sums;  // -128 * sum(q)
  std::int32_t* pair_sums;     // 65536 * sum(q), and in the lower 16 bits -8 * sum(q)

  std::int64_t groups() const { return (rows + kGroup - 1) / kGroup; }
  std::int64_t first(std::int64_t group) const { return rows * group / groups(); }
};

// Some blocks of the rows of a group.
struct Piece {
  std::int64_t group;
  std::int64_t begin, end;  // blocks
};

// normed = sum * rsqrt(mean(sum^2) + epsilon) * gain, with sum = residual + update.
struct Norm {
  const float* residual;  // [rows, inputs]
  const float* update;    // [rows, inputs], or null: zero
  const float* gain;      // [inputs], or null: ones
  float epsilon;
  float* sum;     // [rows, inputs], or null: not wanted
  float* normed;  // [rows, inputs], or null: not wanted
  // For a matrix of 6 bits.
  const std::int32_t* order = nullptr;   // [inputs]: which of them each input of the matrix is
  const float* ordered_gain = nullptr;  // [inputs], in that order
  std::int64_t wide = 0;
};

// The same of a stream x whose squares were added up by tiles of 16 when it was written.
struct Stream {
  const float* x;        // [rows, inputs]
  const float* squares;  // [inputs / 16, rows]
  const float* gain;     // [inputs]
  float epsilon;
};

// What leads a stream on and what is rounded for it: new_residual = scale * sum + bias, and the row
// [sum, normalised; features, normalised] of 2 H values, with H = hidden and sum = residual + update.
struct Bridge {
  const float* residual;  // [rows, H]
  const float* update;    // [rows, H], or null: zero
  const float* features;  // [rows, H]
  const float* scale;     // [H]
  const float* bias;      // [H]
  float epsilon;
  float* new_residual;  // [rows, H]
};

// How far an output of a matrix of 6 bits may be from what it is without `fine`: of output c and row r
// by of_output[c] * of_row[r] + rounding[r] at most.
struct Slack {
  const float* of_output;  // [16 * tiles]
  const float* of_row;     // [rows]
  const float* rounding;   // [rows]
};

// The greatest value of a row so far, and where that is; -1: none yet.
struct Greatest {
  float value = -HUGE_VALF;
  std::int64_t at = -1;
};

struct RowKernels {
  // A piece of x[rows, inputs] -> rows.
  void (*round)(const float* x, const Rows& rows, const Piece& piece);
  // The same of a norm, whose rows begin at row `first`.
  void (*norm_and_round)(const Norm& norm, std::int64_t first, const Rows& rows,
                         const Piece& piece);
  void (*norm_stream_and_round)(const Stream& stream, const Rows& rows, const Piece& piece);
  void (*norm_only)(const Norm& norm, std::int64_t blocks, std::int64_t row);
  // Blocks of the first half of a row write their part of new_residual.
  void (*bridge_and_round)(const Bridge& bridge, const Rows& rows, const Piece& piece);

  // y[rows, outputs] in columns 16 * begin to 16 * end, as far as there are outputs.
  void (*multiply)(const Matrix& matrix, const Rows& rows, std::int64_t begin, std::int64_t end,
                   std::int64_t outputs, float* y);

  // x += y, and squares[outputs / 16, rows] of what x is then; whole tiles only.
  void (*add_product)(const Matrix& matrix, const Rows& rows, std::int64_t begin,
                      std::int64_t end, std::int64_t outputs, float* x, float* squares);

  // The same for tiles in pairs: y = silu(tile 2i) * tile 2i + 1, for pairs begin to end.
  void (*multiply_swiglu)(const Matrix& matrix, const Rows& rows, std::int64_t begin,
                          std::int64_t end, std::int64_t outputs, float* y);

  // The same, where outputs are rounded on the spot: blocks begin to end of `out`, each of two pairs
  // of tiles. There are 32 * out.blocks outputs, and as many rows in `out` as in `rows`.
  void (*multiply_swiglu_and_round)(const Matrix& matrix, const Rows& rows, std::int64_t begin,
                                    std::int64_t end, const Rows& out);

  // For a matrix of 6 bits, whose `fine` is not read: y[rows, outputs] in columns 16 * begin to
  // 16 * end are at least the outputs, and tiles[rows] learn of the greatest value that an output
  // is near to, and of its tile.
  void (*bound)(const Matrix& matrix, const Rows& rows, const Slack& slack, std::int64_t begin,
                std::int64_t end, std::int64_t outputs, float* y, Greatest* tiles);

  // The greatest output of each row, and which, the first of equal ones, among those of tiles begin to
  // end that have a y of least[row] or more for any row, and perhaps others; without y, among all.
  void (*search)(const Matrix& matrix, const Rows& rows, std::int64_t begin, std::int64_t end,
                 std::int64_t outputs, const float* y, const float* least, Greatest* found);
};

const RowKernels& row_kernels(Isa isa);  // isa as isa_named gave it

const RowKernels& plain_row_kernels();
#if defined(SPECDEC_OPS_X86)
const RowKernels& avx2_row_kernels();
const RowKernels& avx512_row_kernels();
#elif defined(SPECDEC_OPS_ARM)
const RowKernels& neon_row_kernels();
#endif

}  // namespace specdec::ops
