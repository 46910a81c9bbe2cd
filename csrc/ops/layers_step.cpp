#include "layers_step.h"

#include <algorithm>
#include <utility>

namespace specdec::ops {
namespace {

constexpr std::int64_t kLine = 16;  // floats in a line of the nearest cache

}  // namespace

void LayersStep::begin(const LayersShape& shape, const AttentionShape& attention,
                       const LayersTensors& tensors, const LayerCache* caches,
                       const RowKernels& row_kernels, const AttentionKernels& attention_kernels,
                       std::int64_t threads) {
  shape_ = shape;
  tensors_ = tensors;
  caches_ = caches;
  kernels_ = &row_kernels;

  const std::int64_t rows = attention.rows;
  // Rows of the feed-forward's middle are made while those at its entry are read.
  const bool bridges = tensors.features != nullptr;
  const std::int64_t read = bridges ? 2 * shape.hidden : shape.hidden;
  const auto in_one_piece = [&](std::int64_t width) {
    const Rows empty{rows, width / kBlock, nullptr, nullptr, nullptr, nullptr, nullptr};
    return Pieces(empty).count() == 1;
  };
  const bool hidden_apart = in_one_piece(shape.hidden);
  const bool mixed_apart = in_one_piece(shape.mixed);
  const std::int64_t copies = hidden_apart || mixed_apart ? Stages(threads).ranges() : 1;
  // Two lines of the nearest cache between copies, which are written at the same time.
  const std::int64_t between = copies > 1 ? (2 * kLine + rows - 1) / rows : 0;
  const std::int64_t entry = std::max(read, shape.mixed) / kBlock + between;
  const Rows scratch = rows_in_scratch(rows, copies * entry + shape.ffn / kBlock);
  const auto part = [&](std::int64_t first_block, std::int64_t width) {
    const std::int64_t first = rows * first_block;
    return Rows{rows,
                width / kBlock,
                scratch.codes + first * kBlock,
                scratch.scales + first,
                scratch.scaled_sums + first,
                scratch.shifted_sums + first,
                scratch.pair_sums + first};
  };
  hidden_rows_ = {part(0, shape.hidden), hidden_apart ? rows * entry : 0};
  mixed_rows_ = {part(0, shape.mixed), mixed_apart ? rows * entry : 0};
  bridge_rows_ = part(0, read);
  ffn_rows_ = part(copies * entry, shape.ffn);

  // Each begins at a line of the nearest cache.
  const auto whole = [&](std::int64_t width) { return (rows * width + kLine - 1) / kLine * kLine; };
  const std::int64_t tiles = shape.hidden / kTile;
  const std::int64_t total = whole(tiles) + whole(shape.qkv) + whole(shape.mixed) +
                             (bridges ? whole(shape.hidden) : 0) + kLine;
  if (static_cast<std::int64_t>(floats_.size()) < total) {
    floats_.resize(static_cast<std::size_t>(total));
  }
  const auto address = reinterpret_cast<std::uintptr_t>(floats_.data()) / sizeof(float);
  squares_ = floats_.data() + (kLine - static_cast<std::int64_t>(address % kLine)) % kLine;
  qkv_ = squares_ + whole(tiles);
  mixed_ = qkv_ + whole(shape.qkv);
  spare_ = mixed_ + whole(shape.mixed);

  AttentionTensors memory;
  memory.qkv = qkv_;
  memory.rows = tensors.rows;
  memory.cosine = tensors.cosine;
  memory.sine = tensors.sine;
  memory.key = caches[0].key;
  memory.value = caches[0].value;
  memory.mixed = mixed_;
  attention_.begin(attention, memory, attention_kernels, static_cast<std::size_t>(threads));
}

void LayersStep::work(const LayerWeights* layers, std::size_t count,
                      Stages::Thread& thread) noexcept {
  Way way{thread, tensors_.new_residual, spare_, false, {}};
  for (std::size_t i = 0; i < count; ++i) {
    if (layers[i].bridge.scale != nullptr) std::swap(way.stream, way.other);
  }
  for (std::size_t i = 0; i < count; ++i) {
    if (layers[i].bridge.scale != nullptr) lead(layers[i].bridge, way);
    attend(layers[i], caches_[i], way);
    feed_forward(layers[i], i + 1 == count, way);
  }
}

void LayersStep::lead(const BridgeWeights& bridge, Way& way) noexcept {
  const Bridge both{way.begun ? way.stream : tensors_.residual,
                    way.begun ? nullptr : tensors_.update,
                    tensors_.features,
                    bridge.scale,
                    bridge.bias,
                    shape_.epsilon,
                    way.other};
  way.upcoming = Upcoming(bridge.matrix, 1, way.thread);
  const Pieces pieces(bridge_rows_);
  way.stage(pieces.count(), [&](std::int64_t piece) {
    kernels_->bridge_and_round(both, bridge_rows_, pieces[piece]);
  });
  std::swap(way.stream, way.other);
  way.begun = true;
  add_product(bridge.matrix, bridge_rows_, way);
}

void LayersStep::attend(const LayerWeights& layer, const LayerCache& cache, Way& way) noexcept {
  const auto multiply_qkv = [&](const Rows& rows, std::int64_t begin, std::int64_t end) {
    if (begin == 0) attention_.next_layer(cache.key, cache.value);
    kernels_->multiply(layer.qkv, rows, begin, end, shape_.qkv, qkv_);
  };
  if (way.begun) {
    const Stream stream = normed(way, layer.attention_gain);
    const auto make = [&](const Rows& rows, const Piece& piece) {
      kernels_->norm_stream_and_round(stream, rows, piece);
    };
    multiply_made(hidden_rows_, make, layer.qkv, 1, way, multiply_qkv);
  } else {
    // Makes the stream too, which is one for all.
    const Norm entry{tensors_.residual, tensors_.update, layer.attention_gain,
                     shape_.epsilon,    way.stream,      nullptr};
    const auto make = [&](const Rows& rows, const Piece& piece) {
      kernels_->norm_and_round(entry, 0, rows, piece);
    };
    multiply_made({hidden_rows_.shared}, make, layer.qkv, 1, way, multiply_qkv);
  }
  way.begun = true;
  way.upcoming = Upcoming(layer.attention_output, 1, way.thread);
  way.stage(static_cast<std::int64_t>(attention_.writes()), [&](std::int64_t write) {
    attention_.run_write(static_cast<std::size_t>(write));
  });
  way.stage(static_cast<std::int64_t>(attention_.units()), [&](std::int64_t unit) {
    attention_.run_unit(static_cast<std::size_t>(unit));
  });
  const auto round = [&](const Rows& rows, const Piece& piece) {
    kernels_->round(mixed_, rows, piece);
  };
  multiply_made(mixed_rows_, round, layer.attention_output, 1, way,
                [&](const Rows& rows, std::int64_t begin, std::int64_t end) {
                  kernels_->add_product(layer.attention_output, rows, begin, end, shape_.hidden,
                                        way.stream, squares_);
                });
}

void LayersStep::feed_forward(const LayerWeights& layer, bool last, Way& way) noexcept {
  const Stream stream = normed(way, layer.ffn_gain);
  const auto make = [&](const Rows& rows, const Piece& piece) {
    kernels_->norm_stream_and_round(stream, rows, piece);
  };
  multiply_made(hidden_rows_, make, layer.gated, 4, way,
                [&](const Rows& rows, std::int64_t begin, std::int64_t end) {
                  kernels_->multiply_swiglu_and_round(layer.gated, rows, begin, end, ffn_rows_);
                });
  way.upcoming = Upcoming(layer.down, 1, way.thread);
  if (!last) return add_product(layer.down, ffn_rows_, way);
  multiply(layer.down, 1, way, [&](std::int64_t begin, std::int64_t end) {
    kernels_->multiply(layer.down, ffn_rows_, begin, end, shape_.hidden, tensors_.new_update);
  });
}

Stream LayersStep::normed(const Way& way, const float* gain) const noexcept {
  return {way.stream, squares_, gain, shape_.epsilon};
}

void LayersStep::add_product(const Matrix& matrix, const Rows& rows, Way& way) noexcept {
  multiply(matrix, 1, way, [&](std::int64_t begin, std::int64_t end) {
    kernels_->add_product(matrix, rows, begin, end, shape_.hidden, way.stream, squares_);
  });
}

Rows LayersStep::Operand::of(const Stages::Thread& thread) const {
  Rows rows = shared;
  const std::int64_t places = stride * thread.range();
  rows.codes += places * kBlock;
  rows.scales += places;
  rows.scaled_sums += places;
  rows.shifted_sums += places;
  rows.pair_sums += places;
  return rows;
}

template <class Make, class Multiply>
void LayersStep::multiply_made(const Operand& operand, const Make& make, const Matrix& matrix,
                               std::int64_t unit_tiles, Way& way,
                               const Multiply& multiply) noexcept {
  way.upcoming = Upcoming(matrix, unit_tiles, way.thread);
  const Rows rows = operand.of(way.thread);
  const Pieces pieces(rows);
  // A thread that comes too late for any part makes none: what they are made of may be gone.
  bool made = !operand.apart();
  if (made) {
    way.stage(pieces.count(), [&](std::int64_t piece) { make(rows, pieces[piece]); });
  }
  this->multiply(matrix, unit_tiles, way, [&](std::int64_t begin, std::int64_t end) {
    if (!made) make(rows, pieces[0]);
    made = true;
    multiply(rows, begin, end);
  });
}

template <class Multiply>
void LayersStep::multiply(const Matrix& matrix, std::int64_t unit_tiles, Way& way,
                          const Multiply& multiply) noexcept {
  const std::int64_t units = matrix.tiles / unit_tiles;
  const std::int64_t part = part_units(matrix, unit_tiles);
  way.upcoming.ask(kLinesAtOnce);
  way.stage((units + part - 1) / part,
            [&](std::int64_t i) { multiply(i * part, std::min((i + 1) * part, units)); });
}

}  // namespace specdec::ops
