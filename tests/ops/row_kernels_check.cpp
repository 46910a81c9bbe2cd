// Every instruction set of this CPU against plain C++, bit for bit, on memory of exactly the size
// that is needed: built with sanitizers by test_row_kernels.py, or for another CPU by hand.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../../csrc/ops/greatest_output.h"
#include "../../csrc/ops/row_kernels.h"
#include "../../csrc/ops/vectors_plain.h"

using namespace specdec::ops;

namespace {

struct Case {
  int bits;
  Scales kind;
  std::int64_t blocks, outputs, rows;
  bool swiglu;
};

template <class T>
std::vector<T> random_values(std::mt19937& random, std::int64_t count, T (*value)(std::mt19937&)) {
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& x : values) x = value(random);
  return values;
}

float number(std::mt19937& random) {
  const auto word = static_cast<std::int32_t>(random());
  return static_cast<float>(word) * (random() % 16 == 0 ? 1e-7f : 1e-9f);
}

template <class T>
void keep_bits(const std::vector<T>& values, std::vector<std::uint32_t>& bits) {
  for (const T x : values) {
    std::uint32_t word = 0;
    std::memcpy(&word, &x, sizeof x);
    bits.push_back(word);
  }
}

// Rounded rows in memory of their own.
struct OwnRows {
  OwnRows(std::int64_t count, std::int64_t blocks)
      : codes(static_cast<std::size_t>(count * blocks * kBlock)),
        s(static_cast<std::size_t>(count * blocks)),
        scaled_sums(s.size()),
        shifted_sums(s.size()),
        pair_sums(s.size()),
        rows{count,    blocks,             codes.data(),        s.data(),
             scaled_sums.data(), shifted_sums.data(), pair_sums.data()} {}

  bool operator==(const OwnRows& other) const {
    return codes == other.codes && s == other.s && scaled_sums == other.scaled_sums &&
           shifted_sums == other.shifted_sums && pair_sums == other.pair_sums;
  }

  std::vector<std::int8_t> codes;
  std::vector<float> s, scaled_sums;
  std::vector<std::int32_t> shifted_sums, pair_sums;
  Rows rows;
};

// What multiply_swiglu_and_round makes is what `round` makes of y.
void check_rounded_on_the_spot(const RowKernels& kernels, const Matrix& matrix, const Rows& rows,
                               const std::vector<float>& y, std::int64_t blocks) {
  OwnRows found(rows.rows, blocks);
  OwnRows expected(rows.rows, blocks);
  kernels.multiply_swiglu_and_round(matrix, rows, 0, blocks / 2, found.rows);
  kernels.multiply_swiglu_and_round(matrix, rows, blocks / 2, blocks, found.rows);
  for (std::int64_t group = 0; group < rows.groups(); ++group) {
    kernels.round(y.data(), expected.rows, Piece{group, 0, blocks});
  }
  if (!(found == expected)) throw std::logic_error("rows rounded on the spot differ from round");
}

// A product that is added to a stream, which is then normalised, is what a norm of both makes of y.
void check_stream(const RowKernels& kernels, const Matrix& matrix, const Rows& rows,
                  const std::vector<float>& y, std::int64_t blocks) {
  std::mt19937 random(8);
  const auto before =
      random_values<float>(random, static_cast<std::int64_t>(y.size()), number);
  const auto gain = random_values<float>(random, blocks * kBlock, number);
  std::vector<float> x = before;
  std::vector<float> sum(y.size());
  std::vector<float> squares(static_cast<std::size_t>(2 * blocks * rows.rows));
  for (const auto& [begin, end] : {std::pair{std::int64_t{0}, blocks}, {blocks, 2 * blocks}}) {
    kernels.add_product(matrix, rows, begin, end, blocks * kBlock, x.data(), squares.data());
  }
  OwnRows found(rows.rows, blocks);
  OwnRows expected(rows.rows, blocks);
  const Stream stream{x.data(), squares.data(), gain.data(), 1e-5f};
  const Norm norm{before.data(), y.data(), gain.data(), 1e-5f, sum.data(), nullptr};
  for (std::int64_t group = 0; group < rows.groups(); ++group) {
    kernels.norm_stream_and_round(stream, found.rows, Piece{group, 0, blocks});
    kernels.norm_and_round(norm, 0, expected.rows, Piece{group, 0, blocks});
  }
  if (x != sum) throw std::logic_error("a product that is added differs from one apart");
  if (!(found == expected)) throw std::logic_error("a stream's norm differs from one of its parts");
}

// All that the kernels write, as bits.
std::vector<std::uint32_t> results(const RowKernels& kernels, const Case& at) {
  std::mt19937 random(7);
  const std::int64_t parts = at.swiglu ? 2 : 1;
  const std::int64_t pairs = (at.outputs + kTile - 1) / kTile;
  const std::int64_t inputs = at.blocks * kBlock;
  Matrix matrix{at.bits, at.blocks, parts * pairs, nullptr, nullptr, at.kind};
  const auto codes = random_values<std::uint8_t>(
      random, matrix.tiles * matrix.tile_codes(),
      [](std::mt19937& r) { return static_cast<std::uint8_t>(r()); });
  auto scales = random_values<std::uint16_t>(  // halves below 2, of both signs
      random, matrix.tiles * matrix.tile_scales(),
      [](std::mt19937& r) { return static_cast<std::uint16_t>(r() & 0xBFFFu); });
  if (at.kind == Scales::bytes) {
    for (std::int64_t tile = 0; tile < matrix.tiles; ++tile) {
      for (std::int64_t i = 0; i < kTile; ++i) {  // ratios
        scales[static_cast<std::size_t>(tile * matrix.tile_scales() + kTile + i)] = random() % 259;
      }
    }
  }
  matrix.codes = codes.data();
  matrix.scales = scales.data();
  const auto residual = random_values<float>(random, at.rows * inputs, number);
  const auto update = random_values<float>(random, at.rows * inputs, number);
  const auto gain = random_values<float>(random, inputs, number);

  const auto values = static_cast<std::size_t>(at.rows * inputs);
  const auto scale_count = static_cast<std::size_t>(at.rows * at.blocks);
  std::vector<std::int8_t> rounded(values);
  std::vector<float> s(scale_count), scaled_sums(scale_count), sum(values), normed(values);
  std::vector<std::int32_t> shifted_sums(scale_count), pair_sums(scale_count);
  std::vector<float> y(static_cast<std::size_t>(at.rows * at.outputs));
  const Rows rows{at.rows,  at.blocks,          rounded.data(),
                  s.data(), scaled_sums.data(), shifted_sums.data(), pair_sums.data()};
  std::vector<std::uint32_t> bits;
  const auto keep = [&](const auto& vector) { keep_bits(vector, bits); };
  const auto for_pieces = [&](const auto& work) {
    for (std::int64_t group = 0; group < rows.groups(); ++group) {
      work(Piece{group, 0, 1});
      work(Piece{group, 1, at.blocks});
    }
  };
  const auto multiply = [&] {
    const auto work = at.swiglu ? kernels.multiply_swiglu : kernels.multiply;
    work(matrix, rows, 0, pairs / 2, at.outputs, y.data());
    work(matrix, rows, pairs / 2, pairs, at.outputs, y.data());
    if (at.swiglu && at.outputs % kBlock == 0) {
      check_rounded_on_the_spot(kernels, matrix, rows, y, at.outputs / kBlock);
    }
    if (!at.swiglu && at.outputs % kBlock == 0) {
      check_stream(kernels, matrix, rows, y, at.outputs / kBlock);
    }
    keep(y);
    keep(rounded);
    keep(s);
    keep(scaled_sums);
    keep(shifted_sums);
    keep(pair_sums);
  };

  for_pieces([&](const Piece& piece) { kernels.round(residual.data(), rows, piece); });
  multiply();
  const Norm norm{residual.data(), update.data(), gain.data(), 1e-5f, sum.data(), normed.data()};
  for_pieces([&](const Piece& piece) { kernels.norm_and_round(norm, 0, rows, piece); });
  multiply();
  keep(sum);
  keep(normed);
  const Norm less{residual.data(), nullptr, gain.data(), 1e-5f, nullptr, nullptr};
  for_pieces([&](const Piece& piece) { kernels.norm_and_round(less, 0, rows, piece); });
  multiply();
  const Norm only{residual.data(), update.data(), nullptr, 1e-5f, sum.data(), normed.data()};
  for (std::int64_t i = 0; i < at.rows; ++i) kernels.norm_only(only, at.blocks, i);
  keep(sum);
  keep(normed);
  if (at.blocks % 2 != 0) return bits;
  // Two norms of half the inputs each.
  std::vector<float> led(values / 2);
  const Bridge bridge{residual.data(), update.data(),  update.data() + inputs / 2, gain.data(),
                      gain.data(), 1e-5f, led.data()};
  for_pieces([&](const Piece& piece) { kernels.bridge_and_round(bridge, rows, piece); });
  multiply();
  keep(led);
  return bits;
}

// Spread::of_output and Spread::size.
std::pair<std::vector<float>, float> spread_of(const Matrix& matrix) {
  std::vector<float> spread;
  double size = 0;
  for (std::int64_t output = 0; output < matrix.tiles * kTile; ++output) {
    const std::int64_t tile = output / kTile;
    const std::int64_t c = output % kTile;
    const std::uint16_t* const scales = matrix.scales + tile * matrix.tile_scales() + c;
    double beyond = 0;
    double whole = 0;
    for (std::int64_t block = 0; block < matrix.blocks; ++block) {
      const double scale = float_of_half(scales[block * kTile]);
      whole += (block < matrix.wide ? 2 * 128.0 * 128 : 90.5 * 90.5) * kBlock * scale * scale;
      if (block < matrix.wide) continue;
      const std::uint8_t* const fine =
          matrix.fine + tile * matrix.tile_fine() + (block - matrix.wide) * 128 + 4 * c;
      for (int place = 0; place < 8; ++place) {
        for (int bits = 0; bits < 8; bits += 2) {
          const double left = (fine[place / 4 * 64 + place % 4] >> bits & 3) - 1.5;
          beyond += scale * scale * left * left;
        }
      }
    }
    spread.push_back(static_cast<float>(std::sqrt(beyond) * 1.000001));
    size = std::max(size, std::sqrt(whole));
  }
  return {spread, static_cast<float>(size)};
}

// The greatest outputs that are found are those of y.
void check_greatest(const RowKernels& kernels, const Matrix& matrix, const Rows& rows,
                    const std::vector<float>& y, std::int64_t outputs) {
  const auto spread = spread_of(matrix);
  std::vector<float> bounds(y.size());
  GreatestOutput greatest(kernels, matrix, rows, {spread.first.data(), spread.second}, outputs, 2,
                          bounds.data());
  if (greatest.bounded()) {
    for (std::int64_t row = 0; row < rows.rows; ++row) greatest.measure(row);
    greatest.bound(1, 0, 1);
    greatest.bound(0, 1, matrix.tiles);
    greatest.choose_least();
  }
  greatest.search(1, 0, 2);
  greatest.search(0, 2, matrix.tiles);
  std::vector<std::int32_t> best(static_cast<std::size_t>(rows.rows));
  greatest.write(best.data());
  for (std::int64_t row = 0; row < rows.rows; ++row) {
    const auto first = y.begin() + row * outputs;
    const auto expected = std::max_element(first, first + outputs) - first;
    if (best[static_cast<std::size_t>(row)] != expected) {
      throw std::logic_error("what was found is not the greatest output");
    }
  }
}

// The same of a norm and a matrix of 6 bits.
std::vector<std::uint32_t> results_of_six(const RowKernels& kernels, std::int64_t count,
                                          std::int64_t blocks, std::int64_t wide) {
  std::mt19937 random(9);
  constexpr std::int64_t kOutputs = 37;
  const std::int64_t inputs = blocks * kBlock;
  Matrix matrix{6, blocks, 3, nullptr, nullptr, Scales::halves, wide};
  const auto codes = random_values<std::uint8_t>(
      random, matrix.tiles * matrix.tile_codes(),
      [](std::mt19937& r) { return static_cast<std::uint8_t>(r()); });
  const auto scales = random_values<std::uint16_t>(
      random, matrix.tiles * matrix.tile_scales(),
      [](std::mt19937& r) { return static_cast<std::uint16_t>(r() & 0xBFFFu); });
  const auto fine = random_values<std::uint8_t>(
      random, matrix.tiles * matrix.tile_fine(),
      [](std::mt19937& r) { return static_cast<std::uint8_t>(r()); });
  matrix.codes = codes.data();
  matrix.fine = fine.data();
  matrix.scales = scales.data();
  const auto residual = random_values<float>(random, count * inputs, number);
  const auto update = random_values<float>(random, count * inputs, number);
  const auto gain = random_values<float>(random, inputs, number);
  const auto ordered_gain = random_values<float>(random, inputs, number);
  std::vector<std::int32_t> order(static_cast<std::size_t>(inputs));
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int32_t>(i);
  std::shuffle(order.begin(), order.end(), random);

  OwnRows own(count, matrix.row_blocks());
  std::vector<float> sum(residual.size()), normed(residual.size());
  std::vector<float> y(static_cast<std::size_t>(count * kOutputs));
  const Norm norm{residual.data(), update.data(), gain.data(),  1e-5f,
                  sum.data(),      normed.data(), order.data(), ordered_gain.data(), wide};
  for (std::int64_t group = 0; group < own.rows.groups(); ++group) {
    kernels.norm_and_round(norm, 0, own.rows, Piece{group, 0, 1});
    kernels.norm_and_round(norm, 0, own.rows, Piece{group, 1, matrix.row_blocks()});
  }
  kernels.multiply(matrix, own.rows, 0, 1, kOutputs, y.data());
  kernels.multiply(matrix, own.rows, 1, 3, kOutputs, y.data());
  check_greatest(kernels, matrix, own.rows, y, kOutputs);
  std::vector<std::uint32_t> bits;
  keep_bits(sum, bits);
  keep_bits(normed, bits);
  keep_bits(own.codes, bits);
  keep_bits(own.s, bits);
  keep_bits(y, bits);
  return bits;
}

bool six_bits_agree(Isa isa, const char* name) {
  for (std::int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 17}) {
    for (std::int64_t blocks : {2, 5}) {
      for (std::int64_t wide : {1, 2}) {
        if (results_of_six(row_kernels(isa), rows, blocks, wide) ==
            results_of_six(row_kernels(Isa::plain), rows, blocks, wide)) {
          continue;
        }
        std::printf("%s differs from plain: 6 bits, %d rows, %d of %d blocks in 8 bits\n", name,
                    static_cast<int>(rows), static_cast<int>(wide), static_cast<int>(blocks));
        return false;
      }
    }
  }
  return true;
}

}  // namespace

int main() {
  int compared = 0;
  for (const char* name : {"avx512", "avx2", "neon"}) {
    Isa isa{};
    try {
      isa = isa_named(name);
    } catch (const std::exception&) {
      continue;
    }
    ++compared;
    if (!six_bits_agree(isa, name)) return 1;
    for (const int form : {4, 8, 0}) {
      const int bits = form == 8 ? 8 : 4;
      const Scales kind = form == 0 ? Scales::bytes : Scales::halves;
      for (bool swiglu : {false, true}) {
        for (std::int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 17}) {
          for (std::int64_t blocks : {3, 4}) {
            for (std::int64_t outputs : {37, 64}) {
              const Case at{bits, kind, blocks, outputs, rows, swiglu};
              if (results(row_kernels(isa), at) == results(row_kernels(Isa::plain), at)) continue;
              std::printf("%s differs from plain: %d bits%s, %d rows, %d blocks, swiglu %d\n", name,
                          bits, form == 0 ? " (scales in bytes)" : "",
                          static_cast<int>(rows), static_cast<int>(blocks), swiglu);
              return 1;
            }
          }
        }
      }
    }
  }
  std::printf("%d instruction sets agree with plain\n", compared);
  return 0;
}
