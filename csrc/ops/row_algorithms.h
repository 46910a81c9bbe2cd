#pragma once

// What the tables of row kernels have in common, written with sixteen floats. To be included behind
// one of the vectors_*.h, by one file for each instruction set, which gives the products of a tile.

#include "row_kernels.h"
#include "vector_math.h"

namespace specdec::ops {
namespace {

// One block of 32 values: two times sixteen floats.
struct Block {
  Floats low, high;
};

inline Block load_block(const float* x) { return {load(x), load(x + 16)}; }

// A tile's weights and a group's rounded rows, at their first block.
struct TileAndGroup {
  const std::uint8_t* codes;
  const std::uint8_t* fine;
  const std::uint16_t* scales;
  const std::int8_t* x;
  const float* s;
  const float* scaled_sums;
  const std::int32_t* shifted_sums;
  const std::int32_t* pair_sums;
  std::int64_t blocks;  // of the rows
  std::int64_t wide;
};

// Writes sums[n, 16], the products of n rows with a tile: functions for n = 1 to 8.
using TileProduct = void (*)(const TileAndGroup&, float* sums);
struct TileProducts {
  TileProduct of_rows[kGroup];
};

struct Group {
  Group(const Rows& rows, std::int64_t group)
      : first(rows.first(group)), count(rows.first(group + 1) - first) {}
  std::int64_t first, count;
};

// Blocks begin to end of a row of a group; block_of(i) gives block i.
template <class BlockOf>
inline void round_row(const Rows& rows, const Group& group, std::int64_t row, const Piece& piece,
                      const BlockOf& block_of) {
  const std::int64_t start = group.first * rows.blocks + (row - group.first);
  std::int8_t* codes = rows.codes + start * kBlock;
  for (std::int64_t i = piece.begin; i < piece.end; ++i) {
    const Block x = block_of(i);
    const float s = largest_magnitude(x.low, x.high) / 127.0f;
    // A block of zeros (or of numbers so small that s is none) has codes of zero.
    const Floats divisor = all(s == 0.0f ? HUGE_VALF : s);
    const std::int32_t sum = store_rounded(divide(x.low, divisor), divide(x.high, divisor),
                                           codes + i * group.count * kBlock);
    const std::int64_t at = start + i * group.count;
    rows.scales[at] = s;
    rows.scaled_sums[at] = s * static_cast<float>(sum);
    rows.shifted_sums[at] = -128 * sum;
    rows.pair_sums[at] = 65536 * sum + (-8 * sum & 0xFFFF);
  }
}

// work(row, group) for the rows of a piece.
template <class Work>
inline void for_rows(const Rows& rows, const Piece& piece, const Work& work) {
  const Group group(rows, piece.group);
  for (std::int64_t row = group.first; row < group.first + group.count; ++row) work(row, group);
}

inline void round(const float* x, const Rows& rows, const Piece& piece) {
  for_rows(rows, piece, [&](std::int64_t row, const Group& group) {
    const float* values = x + row * rows.blocks * kBlock;
    round_row(rows, group, row, piece,
              [&](std::int64_t i) { return load_block(values + i * kBlock); });
  });
}

// Squares are added up by tiles, as they are known where a product has just written them.
inline float squares_of(Floats x) { return fold_add(multiply(x, x)); }

inline float norm_factor(float squares, std::int64_t blocks, float epsilon) {
  const float mean = squares / static_cast<float>(blocks * kBlock);
  return 1.0f / std::sqrt(mean + epsilon);
}

// A row of residual + update, and normalised.
class NormedRow {
 public:
  NormedRow(const Norm& norm, std::int64_t blocks, std::int64_t row)
      : norm_(norm), offset_(row * blocks * kBlock) {
    float squares = 0;
    for (std::int64_t i = 0; i < blocks; ++i) {
      const Block x = sum(i);
      squares += squares_of(x.low);
      squares += squares_of(x.high);
    }
    factor_ = norm_factor(squares, blocks, norm.epsilon);
  }

  Block sum(std::int64_t i) const {
    const Block x = load_block(norm_.residual + offset_ + i * kBlock);
    if (norm_.update == nullptr) return x;
    const Block y = load_block(norm_.update + offset_ + i * kBlock);
    return {add(x.low, y.low), add(x.high, y.high)};
  }

  // Writes block i of norm.sum and of norm.normed where they are wanted.
  Block operator()(std::int64_t i) const {
    Block x = sum(i);
    if (norm_.sum != nullptr) keep(x, norm_.sum, i);
    x.low = multiply(x.low, all(factor_));
    x.high = multiply(x.high, all(factor_));
    if (norm_.gain != nullptr) {
      const Block gain = load_block(norm_.gain + i * kBlock);
      x.low = multiply(x.low, gain.low);
      x.high = multiply(x.high, gain.high);
    }
    if (norm_.normed != nullptr) keep(x, norm_.normed, i);
    return x;
  }

  // Block i of the rows that a matrix of 6 bits takes.
  Block ordered(std::int64_t i) const {
    alignas(64) float values[kBlock];
    const bool left = i >= norm_.wide && i < 2 * norm_.wide;
    const std::int64_t block = i < norm_.wide ? i : i - norm_.wide;
    for (std::int64_t k = 0; k < kBlock; ++k) {
      const std::int64_t at = norm_.order[block * kBlock + k];
      float x = norm_.residual[offset_ + at];
      if (norm_.update != nullptr) x += norm_.update[offset_ + at];
      values[k] = x * factor_ * norm_.ordered_gain[block * kBlock + k];
    }
    if (left) take_rounded(values);
    return load_block(values);
  }

  // Block i of the row in `rows`.
  void keep(const Block& x, float* rows, std::int64_t i) const {
    store(x.low, rows + offset_ + i * kBlock);
    store(x.high, rows + offset_ + i * kBlock + 16);
  }

 private:
  // What rounding a block leaves of it.
  static void take_rounded(float* values) {
    const Block x = load_block(values);
    const float s = largest_magnitude(x.low, x.high) / 127.0f;
    std::int8_t codes[kBlock];
    const Floats divisor = all(s == 0.0f ? HUGE_VALF : s);
    static_cast<void>(store_rounded(divide(x.low, divisor), divide(x.high, divisor), codes));
    for (std::int64_t k = 0; k < kBlock; ++k) values[k] -= s * static_cast<float>(codes[k]);
  }

  const Norm norm_;
  const std::int64_t offset_;
  float factor_;
};

inline void norm_and_round(const Norm& norm, std::int64_t first, const Rows& rows,
                           const Piece& piece) {
  for_rows(rows, piece, [&](std::int64_t row, const Group& group) {
    const std::int64_t blocks = rows.blocks - norm.wide;
    const NormedRow normed(norm, blocks, first + row);
    if (norm.order == nullptr) return round_row(rows, group, row, piece, normed);
    for (std::int64_t i = piece.begin; i < piece.end && i < blocks; ++i) normed(i);
    round_row(rows, group, row, piece, [&](std::int64_t i) { return normed.ordered(i); });
  });
}

inline void norm_stream_and_round(const Stream& stream, const Rows& rows, const Piece& piece) {
  for_rows(rows, piece, [&](std::int64_t row, const Group& group) {
    float squares = 0;
    for (std::int64_t i = 0; i < 2 * rows.blocks; ++i) squares += stream.squares[i * rows.rows + row];
    const Floats factor = all(norm_factor(squares, rows.blocks, stream.epsilon));
    const float* x = stream.x + row * rows.blocks * kBlock;
    round_row(rows, group, row, piece, [&](std::int64_t i) {
      const Block values = load_block(x + i * kBlock);
      const Block gain = load_block(stream.gain + i * kBlock);
      return Block{multiply(multiply(values.low, factor), gain.low),
                   multiply(multiply(values.high, factor), gain.high)};
    });
  });
}

inline void norm_only(const Norm& norm, std::int64_t blocks, std::int64_t row) {
  const NormedRow normed(norm, blocks, row);
  for (std::int64_t i = 0; i < blocks; ++i) normed(i);
}

inline void bridge_and_round(const Bridge& bridge, const Rows& rows, const Piece& piece) {
  const std::int64_t blocks = rows.blocks / 2;
  const Norm stream{bridge.residual, bridge.update, nullptr, bridge.epsilon, nullptr, nullptr};
  const Norm states{bridge.features, nullptr, nullptr, bridge.epsilon, nullptr, nullptr};
  for_rows(rows, piece, [&](std::int64_t row, const Group& group) {
    const NormedRow x(stream, blocks, row);
    const NormedRow f(states, blocks, row);
    for (std::int64_t i = piece.begin; i < piece.end && i < blocks; ++i) {
      const Block sum = x.sum(i);
      const Block scale = load_block(bridge.scale + i * kBlock);
      const Block bias = load_block(bridge.bias + i * kBlock);
      x.keep({fma(scale.low, sum.low, bias.low), fma(scale.high, sum.high, bias.high)},
             bridge.new_residual, i);
    }
    round_row(rows, group, row, piece,
              [&](std::int64_t i) { return i < blocks ? x(i) : f(i - blocks); });
  });
}

inline void tile_product(const TileProducts& products, const Matrix& matrix, std::int64_t tile,
                         const Rows& rows, const Group& group, float* sums) {
  const std::int64_t start = group.first * rows.blocks;
  // Some place that offsets may be added to, where none is read.
  const std::uint8_t* const fine = matrix.fine == nullptr ? matrix.codes : matrix.fine;
  const TileAndGroup both{matrix.codes + tile * matrix.tile_codes(),
                          fine + tile * matrix.tile_fine(),
                          matrix.scales + tile * matrix.tile_scales(),
                          rows.codes + start * kBlock,
                          rows.scales + start,
                          rows.scaled_sums + start,
                          rows.shifted_sums + start,
                          rows.pair_sums + start,
                          rows.blocks,
                          matrix.wide};
  products.of_rows[group.count - 1](both, sums);
}

// y[row, 16 * tile ...] = value(row), for the rows of a group.
template <class Value>
inline void write_tile(const Group& group, std::int64_t tile, std::int64_t outputs, float* y,
                       const Value& value) {
  const std::int64_t left = outputs - tile * kTile;
  for (std::int64_t row = 0; row < group.count; ++row) {
    float* out = y + (group.first + row) * outputs + tile * kTile;
    if (left >= kTile) {
      store(value(row), out);
    } else {
      store_part(value(row), out, static_cast<int>(left));
    }
  }
}

// Tiles outermost: the weights of one stay in the nearest cache for all groups of rows.
inline void multiply_tiles(const TileProducts& products, const Matrix& matrix, const Rows& rows,
                           std::int64_t begin, std::int64_t end, std::int64_t outputs, float* y) {
  alignas(64) float sums[kGroup * kTile];
  for (std::int64_t tile = begin; tile < end; ++tile) {
    for (std::int64_t i = 0; i < rows.groups(); ++i) {
      const Group group(rows, i);
      tile_product(products, matrix, tile, rows, group, sums);
      write_tile(group, tile, outputs, y,
                 [&](std::int64_t row) { return load(sums + row * kTile); });
    }
  }
}

// What fills up the last tile is no output.
inline void leave_out_filling(std::int64_t tile, std::int64_t outputs, const Group& group,
                              float* sums) {
  for (std::int64_t c = outputs - tile * kTile; c < kTile; ++c) {
    for (std::int64_t row = 0; row < group.count; ++row) sums[row * kTile + c] = -HUGE_VALF;
  }
}

inline void bound_tiles(const TileProducts& products, const Matrix& matrix, const Rows& rows,
                        const Slack& slack, std::int64_t begin, std::int64_t end,
                        std::int64_t outputs, float* y, Greatest* tiles) {
  alignas(64) float sums[kGroup * kTile];
  for (std::int64_t tile = begin; tile < end; ++tile) {
    const Floats of_output = load(slack.of_output + tile * kTile);
    for (std::int64_t i = 0; i < rows.groups(); ++i) {
      const Group group(rows, i);
      tile_product(products, matrix, tile, rows, group, sums);
      leave_out_filling(tile, outputs, group, sums);
      write_tile(group, tile, outputs, y, [&](std::int64_t in_group) {
        const std::int64_t row = group.first + in_group;
        const Floats near = load(sums + in_group * kTile);
        if (any_at_least(near, all(tiles[row].value))) tiles[row] = {fold_greater(near), tile};
        return fma(of_output, all(slack.of_row[row]), add(near, all(slack.rounding[row])));
      });
    }
  }
}

// Whether any row may have an output there that is as great as its least.
inline bool may_have_greatest(const float* y, const float* least, std::int64_t rows,
                              std::int64_t outputs, std::int64_t tile) {
  const std::int64_t first = tile * kTile;
  if (outputs - first < kTile) return true;
  for (std::int64_t row = 0; row < rows; ++row) {
    if (any_at_least(load(y + row * outputs + first), all(least[row]))) return true;
  }
  return false;
}

inline void search_tiles(const TileProducts& products, const Matrix& matrix, const Rows& rows,
                         std::int64_t begin, std::int64_t end, std::int64_t outputs,
                         const float* y, const float* least, Greatest* found) {
  alignas(64) float sums[kGroup * kTile];
  for (std::int64_t tile = begin; tile < end; ++tile) {
    if (y != nullptr && !may_have_greatest(y, least, rows.rows, outputs, tile)) continue;
    for (std::int64_t i = 0; i < rows.groups(); ++i) {
      const Group group(rows, i);
      tile_product(products, matrix, tile, rows, group, sums);
      leave_out_filling(tile, outputs, group, sums);
      for (std::int64_t row = 0; row < group.count; ++row) {
        const float* const outputs_of_row = sums + row * kTile;
        Greatest& best = found[group.first + row];
        if (!any_at_least(load(outputs_of_row), all(best.value))) continue;
        for (std::int64_t c = 0; c < kTile; ++c) {
          const std::int64_t output = tile * kTile + c;
          const bool first = outputs_of_row[c] == best.value && output < best.at;
          if (outputs_of_row[c] > best.value || first) best = {outputs_of_row[c], output};
        }
      }
    }
  }
}

inline void add_tiles(const TileProducts& products, const Matrix& matrix, const Rows& rows,
                      std::int64_t begin, std::int64_t end, std::int64_t outputs, float* x,
                      float* squares) {
  alignas(64) float sums[kGroup * kTile];
  for (std::int64_t tile = begin; tile < end; ++tile) {
    for (std::int64_t i = 0; i < rows.groups(); ++i) {
      const Group group(rows, i);
      tile_product(products, matrix, tile, rows, group, sums);
      for (std::int64_t row = 0; row < group.count; ++row) {
        float* const values = x + (group.first + row) * outputs + tile * kTile;
        const Floats sum = add(load(values), load(sums + row * kTile));
        store(sum, values);
        squares[tile * rows.rows + group.first + row] = squares_of(sum);
      }
    }
  }
}

inline void multiply_pairs(const TileProducts& products, const Matrix& matrix, const Rows& rows,
                           std::int64_t begin, std::int64_t end, std::int64_t outputs, float* y) {
  alignas(64) float gates[kGroup * kTile];
  alignas(64) float ups[kGroup * kTile];
  for (std::int64_t pair = begin; pair < end; ++pair) {
    for (std::int64_t i = 0; i < rows.groups(); ++i) {
      const Group group(rows, i);
      tile_product(products, matrix, 2 * pair, rows, group, gates);
      tile_product(products, matrix, 2 * pair + 1, rows, group, ups);
      write_tile(group, pair, outputs, y, [&](std::int64_t row) {
        return multiply(silu(load(gates + row * kTile)), load(ups + row * kTile));
      });
    }
  }
}

// The same for two pairs at a time, whose 32 outputs are a block of `out`.
inline void multiply_pairs_and_round(const TileProducts& products, const Matrix& matrix,
                                     const Rows& rows, std::int64_t begin, std::int64_t end,
                                     const Rows& out) {
  alignas(64) float sums[4][kGroup * kTile];  // gate, up, gate, up
  for (std::int64_t block = begin; block < end; ++block) {
    for (std::int64_t i = 0; i < rows.groups(); ++i) {
      const Group group(rows, i);
      for (int tile = 0; tile < 4; ++tile) {
        tile_product(products, matrix, 4 * block + tile, rows, group, sums[tile]);
      }
      for (std::int64_t at = 0; at < group.count * kTile; at += kTile) {
        for (int tile = 0; tile < 4; tile += 2) {
          const Floats up = load(sums[tile + 1] + at);
          store(multiply(silu(load(sums[tile] + at)), up), sums[tile] + at);
        }
      }
      const Piece piece{i, block, block + 1};
      for_rows(out, piece, [&](std::int64_t row, const Group&) {
        const std::int64_t at = (row - group.first) * kTile;
        round_row(out, group, row, piece,
                  [&](std::int64_t) { return Block{load(sums[0] + at), load(sums[2] + at)}; });
      });
    }
  }
}

}  // namespace
}  // namespace specdec::ops
