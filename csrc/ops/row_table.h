#pragma once

// The table of row kernels, of a file that has product4<HalfScales, n>, product4<ByteScales, n> and
// product8_and_6<n>.

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

template <class BlockScales>
constexpr TileProducts kProducts4 = {
    {product4<BlockScales, 1>, product4<BlockScales, 2>, product4<BlockScales, 3>, product4<BlockScales, 4>,
     product4<BlockScales, 5>, product4<BlockScales, 6>, product4<BlockScales, 7>, product4<BlockScales, 8>}};
constexpr TileProducts kProducts6 = {{product6<1>, product6<2>, product6<3>, product6<4>,
                                      product6<5>, product6<6>, product6<7>, product6<8>}};
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

constexpr RowKernels kRowKernels = {
    round,         norm_and_round, norm_stream_and_round, norm_only,
    bridge_and_round, multiply_rows,  add_product,           multiply_rows_swiglu,
    multiply_rows_swiglu_and_round};

}  // namespace
}  // namespace specdec::ops
