#include "layers_step.h"

#include <algorithm>
#include <utility>

namespace specdec::ops {

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
  const std::int64_t entry = std::max(read, shape.mixed) / kBlock;
  const Rows scratch = rows_in_scratch(rows, entry + shape.ffn / kBlock);
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
  hidden_rows_ = part(0, shape.hidden);
  mixed_rows_ = part(0, shape.mixed);
  bridge_rows_ = part(0, read);
  ffn_rows_ = part(entry, shape.ffn);

  // Each begins at a line of the nearest cache.
  constexpr std::int64_t kLine = 16;
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
  const Norm entry{tensors_.residual, tensors_.update, layer.attention_gain,
                   shape_.epsilon,    way.stream,      nullptr};
  const Stream stream = normed(way, layer.attention_gain);
  const bool begun = way.begun;
  way.upcoming = Upcoming(layer.qkv, 1, way.thread);
  const Pieces pieces(hidden_rows_);
  way.stage(pieces.count() + 1, [&](std::int64_t piece) {
    if (piece == pieces.count()) {
      attention_.next_layer(cache.key, cache.value);
    } else if (begun) {
      kernels_->norm_stream_and_round(stream, hidden_rows_, pieces[piece]);
    } else {
      kernels_->norm_and_round(entry, 0, hidden_rows_, pieces[piece]);
    }
  });
  way.begun = true;
  multiply(layer.qkv, 1, way, [&](std::int64_t begin, std::int64_t end) {
    kernels_->multiply(layer.qkv, hidden_rows_, begin, end, shape_.qkv, qkv_);
  });
  way.upcoming = Upcoming(layer.attention_output, 1, way.thread);
  way.stage(static_cast<std::int64_t>(attention_.writes()), [&](std::int64_t write) {
    attention_.run_write(static_cast<std::size_t>(write));
  });
  way.stage(static_cast<std::int64_t>(attention_.units()), [&](std::int64_t unit) {
    attention_.run_unit(static_cast<std::size_t>(unit));
  });
  const Pieces mixed_pieces(mixed_rows_);
  way.stage(mixed_pieces.count(), [&](std::int64_t piece) {
    kernels_->round(mixed_, mixed_rows_, mixed_pieces[piece]);
  });
  add_product(layer.attention_output, mixed_rows_, way);
}

void LayersStep::feed_forward(const LayerWeights& layer, bool last, Way& way) noexcept {
  const Stream stream = normed(way, layer.ffn_gain);
  way.upcoming = Upcoming(layer.gated, 4, way.thread);
  const Pieces pieces(hidden_rows_);
  way.stage(pieces.count(), [&](std::int64_t piece) {
    kernels_->norm_stream_and_round(stream, hidden_rows_, pieces[piece]);
  });
  multiply(layer.gated, 4, way, [&](std::int64_t begin, std::int64_t end) {
    kernels_->multiply_swiglu_and_round(layer.gated, hidden_rows_, begin, end, ffn_rows_);
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
