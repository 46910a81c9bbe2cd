#pragma once

// The table of row kernels, of a file that has product4<S, n> with S of HalfScales, ByteScales and
// CoarseScales, and product8_and_6<n>.

namespace specdec::ops {
namespace {

template <int kRows>
void product6(const TileAndGroup& at, float* sums) {
  product8_and_6<kRows>(at, at.wide, 2, sums);
}

template <int kRows>
void product8(const TileAndGroup& at, float* sums) {
  product8_and_6<kRows>(at, at.blocks, 1, sums);
}

// Of 6 bits, as if all lower two were in the middle of what they may be.
template <int kRows>
void coarse_product(const TileAndGroup& at, float* sums) {
  const std::int64_t before = 2 * at.wide;  // blocks of the rows
  TileAndGroup wide = at;
  wide.blocks = before;
  product8_and_6<kRows>(wide, at.wide, 2, sums);
  const TileAndGroup rest{at.codes + 512 * at.wide,
                          nullptr,
                          at.scales + kTile * at.wide,
                          at.x + before * kRows * kBlock,
                          at.s + before * kRows,
                          at.scaled_sums + before * kRows,
                          at.shifted_sums + before * kRows,
                          at.pair_sums + before * kRows,
                          at.blocks - before,
                          0};
  alignas(64) float more[kRows * kTile];
  product4<CoarseScales, kRows>(rest, more);
  for (int i = 0; i < kRows * kTile; ++i) sums[i] += more[i];
}

template <class BlockScales>
constexpr TileProducts kProducts4 = {
    {product4<BlockScales, 1>, product4<BlockScales, 2>, product4<BlockScales, 3>, product4<BlockScales, 4>,
     product4<BlockScales, 5>, product4<BlockScales, 6>, product4<BlockScales, 7>, product4<BlockScales, 8>}};
constexpr TileProducts kProducts6 = {{product6<1>, product6<2>, product6<3>, product6<4>,
                                      product6<5>, product6<6>, product6<7>, product6<8>}};
constexpr TileProducts kCoarseProducts = {
    {coarse_product<1>, coarse_product<2>, coarse_product<3>, coarse_product<4>, coarse_product<5>,
     coarse_product<6>, coarse_product<7>, coarse_product<8>}};
constexpr TileProducts kProducts8 = {{product8<1>, product8<2>, product8<3>, product8<4>,
                                      product8<5>, product8<6>, product8<7>, product8<8>}};

const TileProducts& products_of(const Matrix& matrix) {
  if (matrix.bits == 8) return kProducts8;
  if (matrix.bits == 6) return kProducts6;
  return matrix.kind == Scales::bytes ? kProducts4<ByteScales> : kProducts4<HalfScales>;
}

void multiply_rows(const Matrix& matrix, const Rows& rows, std::int64_t begin, std::int64_t end,
                   std::int64_t outputs, float* y) {
  multiply_tiles(products_of(matrix), matrix, rows, begin, end, outputs, y);
}

void add_product(const Matrix& matrix, const Rows& rows, std::int64_t begin, std::int64_t end,
                 std::int64_t outputs, float* x, float* squares) {
  add_tiles(products_of(matrix), matrix, rows, begin, end, outputs, x, squares);
}

void multiply_rows_swiglu(const Matrix& matrix, const Rows& rows, std::int64_t begin,
                          std::int64_t end, std::int64_t outputs, float* y) {
  multiply_pairs(products_of(matrix), matrix, rows, begin, end, outputs, y);
}

void multiply_rows_swiglu_and_round(const Matrix& matrix, const Rows& rows, std::int64_t begin,
                                    std::int64_t end, const Rows& out) {
  multiply_pairs_and_round(products_of(matrix), matrix, rows, begin, end, out);
}

void bound_outputs(const Matrix& matrix, const Rows& rows, const Slack& slack, std::int64_t begin,
                   std::int64_t end, std::int64_t outputs, float* y, Greatest* tiles) {
  bound_tiles(kCoarseProducts, matrix, rows, slack, begin, end, outputs, y, tiles);
}

void search_outputs(const Matrix& matrix, const Rows& rows, std::int64_t begin, std::int64_t end,
                    std::int64_t outputs, const float* y, const float* least, Greatest* found) {
  search_tiles(kProducts6, matrix, rows, begin, end, outputs, y, least, found);
}

constexpr RowKernels kRowKernels = {
    round,         norm_and_round, norm_stream_and_round, norm_only,
    bridge_and_round, multiply_rows,  add_product,           multiply_rows_swiglu,
    multiply_rows_swiglu_and_round, bound_outputs, search_outputs};

}  // namespace
}  // namespace specdec::ops
