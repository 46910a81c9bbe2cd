#include <algorithm>
#include <cmath>
#include <memory>
#include <string>

#include "greatest_output.h"
#include "isa.h"
#include "linear.h"
#include "weight_memory.h"

namespace specdec::ops {
namespace {

enum Input : std::size_t {
  kResidual, kUpdate, kGain, kCodes, kScales, kFirstRow, kOrder, kOrderedGain, kFine, kSpread, kBestOnly
};
enum Output : std::size_t { kY, kNewResidual, kNormed, kBest };

constexpr std::int64_t kTilesAtOnce = 64;  // that are searched

bool swiglu_of(const Node& node) {
  const std::string activation = node.text("activation", "none");
  if (activation == "none") return false;
  if (activation == "swiglu") return true;
  refuse("activation is \"" + activation + "\"; it must be \"none\" or \"swiglu\"");
}

class NormLinear final : public Kernel {
 public:
  explicit NormLinear(const Node& node)
      : swiglu_(swiglu_of(node)),
        epsilon_(node.real("epsilon")),
        matrix_(node, {kCodes, kFine}, swiglu_ ? 2 : 1),
        kernels_(row_kernels(isa_named(node.text("isa", "auto")))) {
    if (!(epsilon_ >= 0 && std::isfinite(epsilon_))) refuse("epsilon must be 0 or more");
    const Shape gain = node.constant(kGain, "gain").shape();
    if (gain != Shape{matrix_.inputs()}) {
      refuse("gain has shape " + gain.text() + "; these weights need [" +
             std::to_string(matrix_.inputs()) + "]");
    }
    if (matrix_.mixed()) {
      if (swiglu_) refuse("6 bits are for a head: activation must be \"none\"");
      check_order(node, kOrder, "order", kOrderedGain, "ordered_gain", matrix_.inputs());
    }
    const Matrix matrix = matrix_.of(node);
    read_spread(node, matrix);
    memory_ = std::make_unique<WeightMemory>(WeightMemory::bytes_of(matrix));
    weights_ = memory_->keep(matrix);
  }

  void compute(const Call& call) const override {
    const Tensor residual = call.input(kResidual);
    const Shape shape = residual.shape();
    if (shape.rank() != 3 || shape[0] != 1 || shape[2] != matrix_.inputs()) {
      refuse("residual has shape " + shape.text() + "; these weights need [1, S, " +
             std::to_string(matrix_.inputs()) + "]");
    }
    Norm norm{};
    norm.residual = residual.data<float>();
    if (call.has_input(kUpdate)) {
      const Tensor update = call.input(kUpdate);
      if (update.shape() != shape) {
        refuse("update has shape " + update.shape().text() + " and residual " + shape.text() +
               "; they must be the same");
      }
      norm.update = update.data<float>();
    }
    norm.gain = call.input_data<float>(kGain);
    norm.epsilon = epsilon_;
    if (matrix_.mixed()) {
      norm.wide = weights_.wide;
      norm.order = call.input_data<std::int32_t>(kOrder);
      norm.ordered_gain = call.input_data<float>(kOrderedGain);
    }
    const std::int64_t outputs = matrix_.outputs() / (swiglu_ ? 2 : 1);
    const std::int64_t first = first_row(call, shape[1]);
    auto* y = call.output<float>(kY, {1, shape[1] - first, outputs});
    norm.sum = call.output<float>(kNewResidual, shape);
    norm.normed = call.output<float>(kNormed, shape);
    auto* const best = call.output<std::int32_t>(kBest, {1, shape[1] - first});
    if (shape[1] == 0) return;

    const Rows rows = rows_in_scratch(shape[1] - first, weights_.row_blocks());
    const auto multiply = swiglu_ ? kernels_.multiply_swiglu : kernels_.multiply;
    for (std::int64_t row = 0; row < first; ++row) kernels_.norm_only(norm, weights_.blocks, row);
    const auto prepare = [&](const Piece& piece) {
      kernels_.norm_and_round(norm, first, rows, piece);
    };
    if (best != nullptr && wants_best_only(call)) {
      return find_best(call, rows, prepare, outputs, y, best);
    }
    for_tiles(call, Pieces(rows), prepare, matrix_, weights_, swiglu_ ? 2 : 1,
              [&](std::int64_t begin, std::int64_t end) {
                multiply(weights_, rows, begin, end, outputs, y);
              });
  }

 private:
  void read_spread(const Node& node, const Matrix& matrix) {
    if (!node.has_constant(kSpread)) return;
    const Tensor spread = node.constant(kSpread, "spread");
    const Shape expected{kTile * matrix.tiles};
    if (!matrix_.mixed() || spread.shape() != expected) {
      refuse("spread has shape " + spread.shape().text() + "; it is for weights of 6 bits, and of " +
             expected.text());
    }
    spread_ = {spread.data<float>(), node.real("size")};
  }

  bool wants_best_only(const Call& call) const {
    if (!call.has_input(kBestOnly)) return false;
    const Tensor input = call.input(kBestOnly);
    if (input.shape() != Shape{1}) {
      refuse("best_only has shape " + input.shape().text() + "; it must be [1]");
    }
    if (*input.data<std::int64_t>() == 0) return false;
    if (spread_.of_output == nullptr) refuse("best_only needs spread");
    return true;
  }

  // y is memory for it, and means nothing afterwards.
  template <class Prepare>
  void find_best(const Call& call, const Rows& rows, const Prepare& prepare, std::int64_t outputs,
                 float* y, std::int32_t* best) const {
    const Pieces pieces(rows);
    const std::int64_t part = part_units(weights_, 1);
    const std::int64_t parts = (weights_.tiles + part - 1) / part;
    const std::int64_t searches = (weights_.tiles + kTilesAtOnce - 1) / kTilesAtOnce;
    Stages stages(std::min(matrix_.threads(), parts));
    GreatestOutput greatest(kernels_, weights_, rows, spread_, outputs, stages.ranges(), y);
    call.parallel(static_cast<std::size_t>(stages.ranges()), [&](std::size_t i) noexcept {
      const auto range = static_cast<std::int64_t>(i);
      Stages::Thread thread(stages, range);
      Upcoming upcoming(weights_, 1, thread);
      thread.stage(pieces.count(), [&](std::int64_t piece) { prepare(pieces[piece]); });
      upcoming.ask(kLinesAtOnce);
      if (!greatest.bounded()) {
        thread.stage(
            parts, [&] { upcoming.ask(1); },
            [&](std::int64_t at) {
              greatest.search(range, at * part, std::min((at + 1) * part, weights_.tiles));
            });
        return;
      }
      thread.stage(rows.rows, [&](std::int64_t row) { greatest.measure(row); });
      thread.stage(
          parts, [&] { upcoming.ask(1); },
          [&](std::int64_t at) {
            greatest.bound(range, at * part, std::min((at + 1) * part, weights_.tiles));
          });
      thread.stage(1, [&](std::int64_t) { greatest.choose_least(); });
      thread.stage(searches, [&](std::int64_t at) {
        const std::int64_t begin = at * kTilesAtOnce;
        greatest.search(range, begin, std::min(begin + kTilesAtOnce, weights_.tiles));
      });
    });
    greatest.write(best);
  }

  static std::int64_t first_row(const Call& call, std::int64_t rows) {
    if (!call.has_input(kFirstRow)) return 0;
    const Tensor input = call.input(kFirstRow);
    if (input.shape() != Shape{1}) {
      refuse("first_row has shape " + input.shape().text() + "; it must be [1]");
    }
    const std::int64_t first = *input.data<std::int64_t>();
    if (first < 0 || first > rows) {
      refuse("first_row is " + std::to_string(first) + "; it must be 0 to " + std::to_string(rows));
    }
    return first;
  }

  const bool swiglu_;
  const float epsilon_;
  const PackedMatrix matrix_;
  std::unique_ptr<WeightMemory> memory_;
  Matrix weights_{};
  Spread spread_{};
  const RowKernels& kernels_;
};

}  // namespace

Declaration norm_linear() {
  return {"NormLinear",
          {{"residual", ElementType::float32},
           {"update", ElementType::float32, Presence::optional},
           {"gain", ElementType::float32},
           {"codes", ElementType::uint8},
           {"scales", ElementType::uint16},
           {"first_row", ElementType::int64, Presence::optional},
           {"order", ElementType::int32, Presence::optional},
           {"ordered_gain", ElementType::float32, Presence::optional},
           {"fine", ElementType::uint8, Presence::optional},
           {"spread", ElementType::float32, Presence::optional},
           {"best_only", ElementType::int64, Presence::optional}},
          {{"y", ElementType::float32},
           {"new_residual", ElementType::float32, Presence::optional},
           {"normed", ElementType::float32, Presence::optional},
           {"best", ElementType::int32, Presence::optional}},
          [](const Node& node) -> std::unique_ptr<Kernel> {
            return std::make_unique<NormLinear>(node);
          }};
}

}  // namespace specdec::ops
