#include <cmath>
#include <memory>
#include <string>
#include <utility>

#include "isa.h"
#include "linear.h"

namespace specdec::ops {
namespace {

enum Input : std::size_t { kResidual, kUpdate, kFeatures, kScale, kBias, kCodes, kScales };
enum Output : std::size_t { kY, kNewResidual };

// Leads a drafter's stream across layers that it skips: y = W [norm(sum); norm(features)] and
// new_residual = scale * sum + bias, with sum = residual + update; the norms have no gains.
class BridgeKernel final : public Kernel {
 public:
  explicit BridgeKernel(const Node& node)
      : epsilon_(node.real("epsilon")),
        matrix_(node, kCodes, 1),
        kernels_(row_kernels(isa_named(node.text("isa", "auto")))) {
    if (!(epsilon_ >= 0 && std::isfinite(epsilon_))) refuse("epsilon must be 0 or more");
    const std::int64_t hidden = matrix_.inputs() / 2;
    if (hidden % kBlock != 0) {
      refuse("codes have " + std::to_string(matrix_.inputs() / kBlock) +
             " blocks; two norms of whole blocks need an even number");
    }
    for (const auto& [input, name] : {std::pair{kScale, "scale"}, std::pair{kBias, "bias"}}) {
      const Shape shape = node.constant(input, name).shape();
      if (shape == Shape{hidden}) continue;
      refuse(std::string(name) + " has shape " + shape.text() + "; these weights need [" +
             std::to_string(hidden) + "]");
    }
  }

  void compute(const Call& call) const override {
    const std::int64_t hidden = matrix_.inputs() / 2;
    const Tensor residual = call.input(kResidual);
    const Shape shape = residual.shape();
    if (shape.rank() != 3 || shape[0] != 1 || shape[2] != hidden) {
      refuse("residual has shape " + shape.text() + "; these weights need [1, S, " +
             std::to_string(hidden) + "]");
    }
    Bridge bridge{};
    bridge.residual = residual.data<float>();
    if (call.has_input(kUpdate)) bridge.update = alike(call, kUpdate, "update", shape);
    bridge.features = alike(call, kFeatures, "features", shape);
    bridge.scale = call.input_data<float>(kScale);
    bridge.bias = call.input_data<float>(kBias);
    bridge.epsilon = epsilon_;
    const std::int64_t outputs = matrix_.outputs();
    auto* y = call.output<float>(kY, {1, shape[1], outputs});
    bridge.new_residual = call.output<float>(kNewResidual, shape);
    if (shape[1] == 0) return;

    const Rows rows = rows_in_scratch(shape[1], matrix_.inputs() / kBlock);
    const Matrix matrix = matrix_.of(call);
    for_tiles(
        call, Pieces(rows),
        [&](const Piece& piece) { kernels_.bridge_and_round(bridge, rows, piece); }, matrix_, matrix,
        1, [&](std::int64_t begin, std::int64_t end) {
          kernels_.multiply(matrix, rows, begin, end, outputs, y);
        });
  }

 private:
  static const float* alike(const Call& call, Input input, const char* name, const Shape& shape) {
    const Tensor tensor = call.input(input);
    if (tensor.shape() != shape) {
      refuse(std::string(name) + " has shape " + tensor.shape().text() + " and residual " +
             shape.text() + "; they must be the same");
    }
    return tensor.data<float>();
  }

  const float epsilon_;
  const PackedMatrix matrix_;
  const RowKernels& kernels_;
};

}  // namespace

Declaration bridge() {
  return {"Bridge",
          {{"residual", ElementType::float32},
           {"update", ElementType::float32, Presence::optional},
           {"features", ElementType::float32},
           {"scale", ElementType::float32},
           {"bias", ElementType::float32},
           {"codes", ElementType::uint8},
           {"scales", ElementType::uint16}},
          {{"y", ElementType::float32}, {"new_residual", ElementType::float32}},
          [](const Node& node) -> std::unique_ptr<Kernel> {
            return std::make_unique<BridgeKernel>(node);
          }};
}

}  // namespace specdec::ops
