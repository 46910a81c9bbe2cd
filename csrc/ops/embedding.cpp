#include <memory>
#include <string>

#include "linear.h"
#include "stored_matrix.h"
#include "vectors_plain.h"
// Behind vectors_plain.h:
#include "block_scales_plain.h"

namespace specdec::ops {
namespace {

// Rows of a packed matrix as floats: y[0, i] = the weights of output tokens[0, i]. So a head that is
// tied to the embedding is in memory once.
class Embedding final : public Kernel {
 public:
  explicit Embedding(const Node& node) : matrix_(node, {kCodes, kFine}, 1), stored_(matrix_.of(node)) {
    if (matrix_.mixed()) check_order(node, kOrder, "order", kFactors, "factors", matrix_.inputs());
  }

  void compute(const Call& call) const override {
    const Tensor input = call.input(0);
    const Shape shape = input.shape();
    if (shape.rank() != 2 || shape[0] != 1) {
      refuse("tokens has shape " + shape.text() + "; it must be [1, S]");
    }
    const auto* tokens = input.data<std::int64_t>();
    for (std::int64_t i = 0; i < shape[1]; ++i) {
      if (tokens[i] >= 0 && tokens[i] < matrix_.outputs()) continue;
      refuse("token " + std::to_string(tokens[i]) + " is not below " +
             std::to_string(matrix_.outputs()));
    }
    auto* y = call.output<float>(0, {1, shape[1], matrix_.inputs()});
    StoredMatrix::Tile memory;
    if (matrix_.mixed()) {
      const auto* order = call.input_data<std::int32_t>(kOrder);
      const auto* factors = call.input_data<float>(kFactors);
      for (std::int64_t i = 0; i < shape[1]; ++i, y += matrix_.inputs()) {
        look_up6(stored_.tile(tokens[i] / kTile, memory), tokens[i] % kTile, order, factors, y);
      }
      return;
    }
    for (std::int64_t i = 0; i < shape[1]; ++i) {
      const Matrix tile = stored_.tile(tokens[i] / kTile, memory);
      const auto look_up = tile.bits == 8                ? look_up8
                           : tile.kind == Scales::bytes ? look_up4<ByteScales>
                                                        : look_up4<HalfScales>;
      look_up(tile, tokens[i] % kTile, y + i * matrix_.inputs());
    }
  }

 private:
  enum Input : std::size_t { kTokens, kCodes, kScales, kOrder, kFactors, kFine };

  // Output c of a tile. Input i is at place order[i] of y, times factors[i].
  static void look_up6(const Matrix& matrix, std::int64_t c, const std::int32_t* order,
                       const float* factors, float* y) {
    const std::uint8_t* codes = matrix.codes + 4 * c;
    const std::uint8_t* fine = matrix.fine + 4 * c;
    const std::uint16_t* scales = matrix.scales + c;
    for (std::int64_t block = 0; block < matrix.blocks; ++block, scales += kTile) {
      const float scale = float_of_half(*scales);
      const auto put = [&](std::int64_t k, int code) {
        y[order[k]] = scale * static_cast<float>(code) * factors[k];
      };
      const std::int64_t first = block * kBlock;
      if (block < matrix.wide) {
        for (std::int64_t k = 0; k < kBlock; ++k) put(first + k, codes[k / 4 * 64 + k % 4] - 128);
        codes += 512;
        continue;
      }
      for (std::int64_t k = 0; k < kBlock / 2; ++k) {
        const std::int64_t g = k / 4;
        const int upper = codes[g * 64 + k % 4];
        const int lower = fine[g / 2 * 64 + k % 4] >> (g % 2 * 4);
        put(first + k, 4 * (upper & 15) + (lower & 3) - 32);
        put(first + kBlock / 2 + k, 4 * (upper >> 4) + (lower >> 2 & 3) - 32);
      }
      codes += 256;
      fine += 128;
    }
  }

  // Output c of a tile.
  static void look_up8(const Matrix& matrix, std::int64_t c, float* y) {
    const std::uint8_t* codes = matrix.codes + 4 * c;
    const std::uint16_t* scales = matrix.scales + c;
    for (std::int64_t block = 0; block < matrix.blocks; ++block, y += kBlock) {
      const float scale = float_of_half(*scales);
      for (std::int64_t k = 0; k < kBlock; ++k) {
        y[k] = scale * static_cast<float>(codes[k / 4 * 64 + k % 4] - 128);
      }
      codes += 512;
      scales += kTile;
    }
  }

  template <class BlockScales>
  static void look_up4(const Matrix& matrix, std::int64_t output, float* y) {
    const int c = static_cast<int>(output);
    const std::uint8_t* codes = matrix.codes + 4 * c;
    const std::uint16_t* scales = matrix.scales;
    const BlockScales kept(scales);
    for (std::int64_t block = 0; block < matrix.blocks; ++block, y += kBlock) {
      const auto of_block = kept.of(scales, c);
      const auto value = [&](int code) { return kept.weight(of_block, code, c); };
      for (std::int64_t k = 0; k < kBlock / 2; ++k) {
        const int both = codes[k / 4 * 64 + k % 4];
        y[k] = value(both & 15);
        y[k + kBlock / 2] = value(both >> 4);
      }
      codes += 256;
      scales += BlockScales::kWords;
    }
  }

  const PackedMatrix matrix_;
  const StoredMatrix stored_;
};

}  // namespace

Declaration embedding() {
  return {"Embedding",
          {{"tokens", ElementType::int64},
           {"codes", ElementType::uint8},
           {"scales", ElementType::uint16},
           {"order", ElementType::int32, Presence::optional},
           {"factors", ElementType::float32, Presence::optional},
           {"fine", ElementType::uint8, Presence::optional}},
          {{"y", ElementType::float32}},
          [](const Node& node) -> std::unique_ptr<Kernel> {
            return std::make_unique<Embedding>(node);
          }};
}

}  // namespace specdec::ops
