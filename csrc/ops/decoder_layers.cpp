#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "attention_operands.h"
#include "isa.h"
#include "layers_step.h"
#include "weight_memory.h"

namespace specdec::ops {
namespace {

enum Input : std::size_t {
  kResidual,
  kUpdate,
  kRows,
  kCosine,
  kSine,
  kFeatures,
  kPast,
  kCacheLayers,
  kFirstOfLayers,
};
enum Output : std::size_t { kNewResidual, kNewUpdate, kPresent };

// The inputs of a layer, behind those of the layers before it, and of the bridge that leads to it. A
// matrix is two inputs.
enum LayerInput : std::size_t {
  kAttentionGain,
  kQkv,
  kAttentionOutput = kQkv + 2,
  kFfnGain = kAttentionOutput + 2,
  kGated,
  kDown = kGated + 2,
  kLayerInputs = kDown + 2,
  kBridgeScale = kLayerInputs,
  kBridgeBias,
  kBridge,
  kBridgedInputs = kBridge + 2,
};

// Layers that follow each other, in one node.
class DecoderLayers final : public Kernel {
 public:
  explicit DecoderLayers(const Node& node)
      : heads_(node.integer("heads")),
        kv_heads_(node.integer("kv_heads")),
        threads_(std::max(1u, std::thread::hardware_concurrency())),
        row_kernels_(row_kernels(isa_named(node.text("isa", "auto")))),
        attention_kernels_(attention_kernels(isa_named(node.text("isa", "auto")))) {
    const std::int64_t count = node.integer("layers");
    if (count < 1 || count > 4096) refuse("layers is " + std::to_string(count));
    check_heads(heads_, kv_heads_);
    shape_.epsilon = node.real("epsilon");
    if (!(shape_.epsilon >= 0 && std::isfinite(shape_.epsilon))) refuse("epsilon must be 0 or more");
    const std::int64_t bridges = node.integer("bridges");
    if (bridges < 0 || (count < 63 && bridges >> count != 0)) {
      refuse("bridges is " + std::to_string(bridges) + "; bit i is for layer i of " +
             std::to_string(count));
    }
    std::size_t first = kFirstOfLayers;
    for (std::int64_t i = 0; i < count; ++i) {
      const bool bridged = i < 63 && (bridges >> i & 1) != 0;
      layers_.push_back(read(node, first));
      if (bridged) layers_.back().bridge = read_bridge(node, first);
      first += bridged ? kBridgedInputs : kLayerInputs;
      bridged_ = bridged_ || bridged;
    }
    read_cache_layers(node);

    std::size_t bytes = 0;
    for (LayerWeights& layer : layers_) {
      for (const Matrix* matrix : matrices(layer)) bytes += WeightMemory::bytes_of(*matrix);
    }
    memory_ = std::make_unique<WeightMemory>(bytes);
    for (LayerWeights& layer : layers_) {
      for (Matrix* matrix : matrices(layer)) *matrix = memory_->keep(*matrix);
    }
  }

  void compute(const Call& call) const override {
    const Tensor residual = call.input(kResidual);
    const Shape shape = residual.shape();
    if (shape.rank() != 3 || shape[0] != 1 || shape[2] != shape_.hidden) {
      refuse("residual has shape " + shape.text() + "; these weights need [1, S, " +
             std::to_string(shape_.hidden) + "]");
    }
    LayersTensors tensors{};
    tensors.residual = residual.data<float>();
    if (call.has_input(kUpdate)) {
      const Tensor update = call.input(kUpdate);
      require(update.shape(), shape, "update");
      tensors.update = update.data<float>();
    }
    const Tensor past = call.input(kPast);
    const Shape cache = past.shape();
    const AttentionShape attention = attention_of(call, past, cache, shape[1]);
    tensors.rows = call.input_data<std::int32_t>(kRows);
    tensors.cosine = call.input_data<float>(kCosine);
    tensors.sine = call.input_data<float>(kSine);
    if (bridged_) {
      if (!call.has_input(kFeatures)) refuse("bridges read features, and there are none");
      const Tensor features = call.input(kFeatures);
      require(features.shape(), shape, "features");
      tensors.features = features.data<float>();
    }
    tensors.new_residual = call.output<float>(kNewResidual, shape);
    tensors.new_update = call.output<float>(kNewUpdate, shape);

    // By thread and not by kernel: sessions may be run from several threads, layers run in turn.
    static thread_local Scratch scratch;
    Scratch& mine = scratch;
    take_caches(call, past, cache, mine.caches);
    if (attention.rows == 0) return;
    if (tensors.new_residual == nullptr || tensors.new_update == nullptr) {
      refuse("all outputs must be used");
    }

    mine.step.begin(shape_, attention, tensors, mine.caches.data(), row_kernels_,
                    attention_kernels_, threads_);
    Stages stages(threads_);
    call.parallel(static_cast<std::size_t>(stages.ranges()), [&](std::size_t range) noexcept {
      Stages::Thread thread(stages, static_cast<std::int64_t>(range));
      mine.step.work(layers_.data(), layers_.size(), thread);
    });
  }

 private:
  struct Scratch {
    LayersStep step;
    std::vector<LayerCache> caches;
  };

  static std::vector<Matrix*> matrices(LayerWeights& layer) {
    std::vector<Matrix*> found{&layer.qkv, &layer.attention_output, &layer.gated, &layer.down};
    if (layer.bridge.scale != nullptr) found.insert(found.begin(), &layer.bridge.matrix);
    return found;
  }

  // What the first layer has, all must have.
  LayerWeights read(const Node& node, std::size_t first) {
    const Tensor attention_gain = node.constant(first + kAttentionGain, "attention_gain");
    const Tensor ffn_gain = node.constant(first + kFfnGain, "ffn_gain");
    if (layers_.empty()) take_sizes(node, first, attention_gain.shape());
    require(attention_gain.shape(), {shape_.hidden}, "attention_gain");
    require(ffn_gain.shape(), {shape_.hidden}, "ffn_gain");
    LayerWeights layer{};
    layer.attention_gain = attention_gain.data<float>();
    layer.ffn_gain = ffn_gain.data<float>();
    layer.qkv = matrix(node, first + kQkv, "qkv", shape_.hidden, shape_.qkv, 1);
    layer.attention_output = matrix(node, first + kAttentionOutput, "attention_output",
                                    shape_.mixed, shape_.hidden, 1);
    layer.gated = matrix(node, first + kGated, "gated", shape_.hidden, 2 * shape_.ffn, 2);
    layer.down = matrix(node, first + kDown, "down", shape_.ffn, shape_.hidden, 1);
    return layer;
  }

  BridgeWeights read_bridge(const Node& node, std::size_t first) const {
    BridgeWeights bridge;
    for (const auto& [input, name, values] :
         {std::tuple{kBridgeScale, "bridge_scale", &bridge.scale},
          std::tuple{kBridgeBias, "bridge_bias", &bridge.bias}}) {
      const Tensor tensor = node.constant(first + input, name);
      require(tensor.shape(), {shape_.hidden}, name);
      *values = tensor.data<float>();
    }
    bridge.matrix = matrix(node, first + kBridge, "bridge", 2 * shape_.hidden, shape_.hidden, 1);
    return bridge;
  }

  void take_sizes(const Node& node, std::size_t first, const Shape& gain) {
    if (gain.rank() != 1) refuse("attention_gain is " + gain.text() + ", not [hidden]");
    shape_.hidden = gain[0];
    shape_.mixed =
        PackedMatrix(node, first + kAttentionOutput, shape_.hidden, 1).inputs();
    shape_.ffn = PackedMatrix(node, first + kDown, shape_.hidden, 1).inputs();
    const std::int64_t head_dim = shape_.mixed / heads_;
    if (head_dim * heads_ != shape_.mixed) {
      refuse("attention_output has " + std::to_string(shape_.mixed) + " inputs, which are not " +
             std::to_string(heads_) + " heads");
    }
    check_head_dim(head_dim);
    shape_.qkv = (heads_ + 2 * kv_heads_) * head_dim;
  }

  static Matrix matrix(const Node& node, std::size_t input, const char* name, std::int64_t inputs,
                       std::int64_t outputs, std::int64_t parts) {
    const PackedMatrix packed(node, input, outputs, parts);
    if (packed.inputs() != inputs) {
      refuse(std::string(name) + " has " + std::to_string(packed.inputs()) + " inputs, not " +
             std::to_string(inputs));
    }
    return packed.of(node);
  }

  // The layer of the cache that each layer reads and writes; its own where the node says nothing.
  void read_cache_layers(const Node& node) {
    const auto count = static_cast<std::int64_t>(layers_.size());
    for (std::int64_t i = 0; i < count; ++i) cache_layers_.push_back(i);
    if (!node.has_constant(kCacheLayers)) return;
    const Tensor tensor = node.constant(kCacheLayers, "cache_layers");
    require(tensor.shape(), {count}, "cache_layers");
    const auto* const given = tensor.data<std::int32_t>();
    for (std::int64_t i = 0; i < count; ++i) {
      if (given[i] < 0) refuse("cache_layers has " + std::to_string(given[i]));
      cache_layers_[static_cast<std::size_t>(i)] = given[i];
    }
  }

  AttentionShape attention_of(const Call& call, const Tensor& past, const Shape& cache,
                              std::int64_t rows) const {
    if (past.type() != ElementType::float16) refuse("past must be of 16-bit floats");
    const std::int64_t needed = 1 + *std::max_element(cache_layers_.begin(), cache_layers_.end());
    if (cache.rank() != 6 || cache[0] < needed || cache[1] != 2 || cache[3] != kv_heads_ ||
        cache[5] != shape_.mixed / heads_) {
      refuse("past is " + cache.text() + ", not [" + std::to_string(needed) +
             " or more layers, 2, sequences, " + std::to_string(kv_heads_) +
             " K/V heads, capacity, head_dim " + std::to_string(shape_.mixed / heads_) + "]");
    }
    return attention_shape(rows, heads_, kv_heads_, {cache[2], cache[3], cache[4], cache[5]},
                           call.input(kRows).shape(), call.input(kCosine).shape(),
                           call.input(kSine).shape());
  }

  // The memory that the layers' caches are read from and written to.
  void take_caches(const Call& call, const Tensor& past, const Shape& shape,
                   std::vector<LayerCache>& caches) const {
    auto* const present = call.output<std::uint16_t>(kPresent, shape);
    if (present == nullptr) refuse("all outputs must be used");
    std::uint16_t* const memory = take_over(past.data<std::uint16_t>(), present, shape);
    const std::int64_t half = shape[2] * shape[3] * shape[4] * shape[5];
    caches.clear();
    for (const std::int64_t layer : cache_layers_) {
      std::uint16_t* const key = memory + 2 * layer * half;
      caches.push_back({key, key + half});
    }
  }

  const std::int64_t heads_;
  const std::int64_t kv_heads_;
  const std::int64_t threads_;
  const RowKernels& row_kernels_;
  const AttentionKernels attention_kernels_;
  LayersShape shape_{};
  std::vector<LayerWeights> layers_;
  std::vector<std::int64_t> cache_layers_;
  bool bridged_ = false;
  std::unique_ptr<WeightMemory> memory_;
};

}  // namespace

Declaration decoder_layers() {
  return {"DecoderLayers",
          {{"residual", ElementType::float32},
           {"update", ElementType::float32, Presence::optional},
           {"rows", ElementType::int32},
           {"cosine", ElementType::float32},
           {"sine", ElementType::float32},
           {"features", ElementType::float32, Presence::optional},
           {"past", ElementType::float16},
           {"cache_layers", ElementType::int32, Presence::optional},
           {"layers", ElementType::any, Presence::variadic}},
          {{"new_residual", ElementType::float32},
           {"new_update", ElementType::float32},
           {"present", ElementType::float16}},
          [](const Node& node) -> std::unique_ptr<Kernel> {
            return std::make_unique<DecoderLayers>(node);
          }};
}

}  // namespace specdec::ops
