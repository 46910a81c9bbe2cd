#pragma once

// The table of row kernels, of a file that has product4<n> and product8<n>.

namespace specdec::ops {
namespace {

constexpr TileProducts kProducts4 = {{product4<1>, product4<2>, product4<3>, product4<4>,
                                      product4<5>, product4<6>, product4<7>, product4<8>}};
constexpr TileProducts kProducts8 = {{product8<1>, product8<2>, product8<3>, product8<4>,
                                      product8<5>, product8<6>, product8<7>, product8<8>}};

void multiply_rows(const Matrix& matrix, const Rows& rows, std::int64_t begin, std::int64_t end,
                   std::int64_t outputs, float* y) {
  const TileProducts& products = matrix.bits == 4 ? kProducts4 : kProducts8;
  multiply_tiles(products, matrix, rows, begin, end, outputs, y);
}

void multiply_rows_swiglu(const Matrix& matrix, const Rows& rows, std::int64_t begin,
                          std::int64_t end, std::int64_t outputs, float* y) {
  const TileProducts& products = matrix.bits == 4 ? kProducts4 : kProducts8;
  multiply_pairs(products, matrix, rows, begin, end, outputs, y);
}

void multiply_rows_swiglu_and_round(const Matrix& matrix, const Rows& rows, std::int64_t begin,
                                    std::int64_t end, const Rows& out) {
  const TileProducts& products = matrix.bits == 4 ? kProducts4 : kProducts8;
  multiply_pairs_and_round(products, matrix, rows, begin, end, out);
}

constexpr RowKernels kRowKernels = {
    round,         norm_and_round,       norm_only,                     bridge_and_round,
    multiply_rows, multiply_rows_swiglu, multiply_rows_swiglu_and_round};

}  // namespace
}  // namespace specdec::ops
