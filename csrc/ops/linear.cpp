#include "linear.h"

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "isa.h"

namespace specdec::ops {
namespace {

std::string multiple(std::int64_t outputs, std::int64_t parts) {
  return parts == 1 ? std::to_string(outputs) + " outputs"
                    : std::to_string(outputs) + " outputs in " + std::to_string(parts) + " parts";
}

std::int64_t bits_of(const Shape& codes) {
  return codes.rank() == 3 && codes[2] == 64 * 4 ? 4 : 8;
}

class Linear final : public Kernel {
 public:
  explicit Linear(const Node& node)
      : matrix_(node, 1, 1), kernels_(row_kernels(isa_named(node.text("isa", "auto")))) {}

  void compute(const Call& call) const override {
    const Tensor x = call.input(0);
    const Shape shape = x.shape();
    if (shape.rank() != 3 || shape[0] != 1 || shape[2] != matrix_.inputs()) {
      refuse("x has shape " + shape.text() + "; these weights need [1, S, " +
             std::to_string(matrix_.inputs()) + "]");
    }
    const std::int64_t outputs = matrix_.outputs();
    auto* y = call.output<float>(0, {1, shape[1], outputs});
    if (shape[1] == 0) return;

    const auto* values = x.data<float>();
    const Rows rows = rows_in_scratch(shape[1], matrix_.inputs() / kBlock);
    const Matrix matrix = matrix_.of(call);
    for_tiles(
        call, Pieces(rows), [&](const Piece& piece) { kernels_.round(values, rows, piece); },
        matrix_, matrix, 1, [&](std::int64_t begin, std::int64_t end) {
          kernels_.multiply(matrix, rows, begin, end, outputs, y);
        });
  }

 private:
  const PackedMatrix matrix_;
  const RowKernels& kernels_;
};

}  // namespace

PackedMatrix::PackedMatrix(const Node& node, std::size_t codes, std::int64_t parts)
    : PackedMatrix(node, Inputs{codes, kNowhere}, parts) {}

PackedMatrix::PackedMatrix(const Node& node, Inputs inputs, std::int64_t parts)
    : PackedMatrix(node, inputs, node.integer("outputs"), parts, node.integer("bits")) {}

PackedMatrix::PackedMatrix(const Node& node, std::size_t codes, std::int64_t outputs,
                           std::int64_t parts)
    : PackedMatrix(node, {codes, kNowhere}, outputs, parts,
                   bits_of(node.constant(codes, "codes").shape())) {}

PackedMatrix::PackedMatrix(const Node& node, Inputs inputs, std::int64_t outputs,
                           std::int64_t parts, std::int64_t bits)
    : inputs_(inputs),
      outputs_(outputs),
      shape_{},
      threads_(std::max(1u, std::thread::hardware_concurrency())) {
  if (bits != 4 && bits != 6 && bits != 8) {
    refuse("bits is " + std::to_string(bits) + "; it must be 4, 6 or 8");
  }
  if (outputs_ < 1 || outputs_ % parts != 0) {
    refuse("outputs is " + std::to_string(outputs_) + "; it must be a positive multiple of " +
           std::to_string(parts));
  }
  const Shape code_shape = node.constant(inputs.codes, "codes").shape();
  const Shape scale_shape = node.constant(inputs.codes + 1, "scales").shape();
  shape_.bits = static_cast<int>(bits);
  shape_.tiles = parts * ((outputs_ / parts + kTile - 1) / kTile);
  if (bits == 6) {
    read_mixed(node, code_shape, scale_shape);
    return;
  }
  shape_.blocks = code_shape.rank() == 3 ? code_shape[1] : 0;
  const Shape expected{shape_.tiles, shape_.blocks, bits == 4 ? 256 : 512};
  if (shape_.blocks < 1 || code_shape != expected) {
    refuse("codes has shape " + code_shape.text() + "; " + std::to_string(bits) + " bits and " +
           multiple(outputs_, parts) + " need [" + std::to_string(shape_.tiles) + ", blocks, " +
           std::to_string(expected[2]) + "]");
  }
  const Shape expected_scales = bits == 4 ? Shape{shape_.tiles, shape_.blocks, 2, kTile}
                                          : Shape{shape_.tiles, shape_.blocks, kTile};
  if (bits == 4 && scale_shape == Shape{shape_.tiles, 2 + shape_.blocks, kTile}) {
    shape_.kind = Scales::bytes;
  } else if (scale_shape != expected_scales) {
    refuse("scales has shape " + scale_shape.text() + "; codes of shape " + code_shape.text() +
           " need " + expected_scales.text());
  }
}

// Blocks of 6 bits behind some of 8.
void PackedMatrix::read_mixed(const Node& node, const Shape& codes, const Shape& scales) {
  if (inputs_.fine == kNowhere) refuse("6 bits are for the head that NormLinear computes");
  const std::int64_t blocks = scales.rank() == 3 ? scales[1] : 0;
  const std::int64_t bytes = codes.rank() == 2 ? codes[1] : 0;
  const std::int64_t more = bytes - 256 * blocks;  // 256 for each of 8 bits
  shape_.blocks = blocks;
  shape_.wide = more / 256;
  if (blocks < 1 || more < 0 || more > 256 * blocks || more % 256 != 0 ||
      codes != Shape{shape_.tiles, bytes} || scales != Shape{shape_.tiles, blocks, kTile}) {
    refuse("codes has shape " + codes.text() + " and scales " + scales.text() +
           "; 6 bits and " + std::to_string(outputs_) + " outputs need [" +
           std::to_string(shape_.tiles) + ", 512 w + 256 (blocks - w)] and [" +
           std::to_string(shape_.tiles) + ", blocks, 16], with w of the blocks in 8 bits");
  }
  const Shape fine = node.constant(inputs_.fine, "fine").shape();
  const Shape expected{shape_.tiles, shape_.tile_fine()};
  if (fine != expected) {
    refuse("fine has shape " + fine.text() + "; codes of shape " + codes.text() + " need " +
           expected.text());
  }
}

void check_order(const Node& node, std::size_t order_input, const char* order_name,
                 std::size_t factors_input, const char* factors_name, std::int64_t inputs) {
  const Tensor order = node.constant(order_input, order_name);
  const Shape factors = node.constant(factors_input, factors_name).shape();
  const Shape expected{inputs};
  if (order.shape() != expected || factors != expected) {
    refuse(std::string(order_name) + " has shape " + order.shape().text() + " and " +
           factors_name + " " + factors.text() + "; these weights need " + expected.text());
  }
  std::vector<bool> seen(static_cast<std::size_t>(inputs), false);
  const auto* const places = order.data<std::int32_t>();
  for (std::int64_t i = 0; i < inputs; ++i) {
    const std::int32_t at = places[i];
    if (at < 0 || at >= inputs || seen[static_cast<std::size_t>(at)]) {
      refuse(std::string(order_name) + "[" + std::to_string(i) + "] is " + std::to_string(at) +
             "; each input has to be there once");
    }
    seen[static_cast<std::size_t>(at)] = true;
  }
}

Matrix PackedMatrix::of(const Node& node) const {
  Matrix matrix = shape_;
  matrix.codes = node.constant(inputs_.codes, "codes").data<std::uint8_t>();
  if (matrix.tile_fine() > 0) {
    matrix.fine = node.constant(inputs_.fine, "fine").data<std::uint8_t>();
  }
  matrix.scales = node.constant(inputs_.codes + 1, "scales").data<std::uint16_t>();
  return matrix;
}

std::int64_t part_units(const Matrix& matrix, std::int64_t unit_tiles) {
  constexpr std::int64_t kPartBytes = 12 * 1024;
  return std::max<std::int64_t>(1, kPartBytes / (matrix.tile_bytes() * unit_tiles));
}

Upcoming::Upcoming(const Matrix& matrix, std::int64_t unit_tiles, const Stages::Thread& thread) {
  constexpr std::int64_t kMost = 64 * 1024;
  const std::int64_t part = part_units(matrix, unit_tiles);
  const std::int64_t parts = (matrix.tiles / unit_tiles + part - 1) / part;
  const std::int64_t own = thread.first(parts);
  if (own >= thread.last(parts)) return;
  const std::int64_t tile = own * part * unit_tiles;
  next_ = matrix.codes + tile * matrix.tile_codes();
  end_ = next_ + std::min(kMost, (matrix.tiles - tile) * matrix.tile_codes());
}

void Upcoming::ask(std::int64_t lines) noexcept {
#if defined(__GNUC__)
  constexpr std::int64_t kLine = 64;
  for (; lines > 0 && next_ < end_; --lines, next_ += kLine) __builtin_prefetch(next_, 0, 2);
#else
  static_cast<void>(lines);
#endif
}

Matrix PackedMatrix::of(const Call& call) const {
  Matrix matrix = shape_;
  matrix.codes = call.input_data<std::uint8_t>(inputs_.codes);
  matrix.scales = call.input_data<std::uint16_t>(inputs_.codes + 1);
  return matrix;
}

Pieces::Pieces(const Rows& rows) : groups_(rows.groups()), of_group_(1), blocks_(rows.blocks) {
  // What a norm needs of a whole row is computed anew for each of its pieces, so there are few; and
  // other threads come too late for little work.
  constexpr std::int64_t kMost = 4;
  constexpr std::int64_t kLeast = 64;  // blocks of a row
  if (groups_ == 0 || groups_ >= kMost) return;
  of_group_ = std::clamp<std::int64_t>(rows.rows * blocks_ / groups_ / kLeast, 1, kMost / groups_);
}

Piece Pieces::operator[](std::int64_t i) const {
  const std::int64_t part = i % of_group_;
  return {i / of_group_, blocks_ * part / of_group_, blocks_ * (part + 1) / of_group_};
}

Rows rows_in_scratch(std::int64_t rows, std::int64_t blocks) {
  const std::size_t scales = static_cast<std::size_t>(rows * blocks);
  thread_local std::vector<std::int8_t> codes;
  thread_local std::vector<float> floats;
  thread_local std::vector<std::int32_t> integers;
  codes.resize(std::max(codes.size(), scales * static_cast<std::size_t>(kBlock)));
  floats.resize(std::max(floats.size(), 2 * scales));
  integers.resize(std::max(integers.size(), 2 * scales));
  return {rows,          blocks,
          codes.data(),  floats.data(),
          floats.data() + scales, integers.data(),
          integers.data() + scales};
}

Declaration linear() {
  return {"Linear",
          {{"x", ElementType::float32},
           {"codes", ElementType::uint8},
           {"scales", ElementType::uint16}},
          {{"y", ElementType::float32}},
          [](const Node& node) -> std::unique_ptr<Kernel> {
            return std::make_unique<Linear>(node);
          }};
}

}  // namespace specdec::ops
