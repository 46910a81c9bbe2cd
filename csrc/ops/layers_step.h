#pragma once

#include <cstdint>
#include <vector>

#include "attention_step.h"
#include "linear.h"
#include "row_kernels.h"
#include "stages.h"

namespace specdec::ops {

// From one layer of a drafter to the next: its stream becomes scale * x + bias, to which the product
// of both norms, of x and of the features, is added.
struct BridgeWeights {
  const float* scale = nullptr;  // [hidden]; null: there is no bridge
  const float* bias = nullptr;   // [hidden]
  Matrix matrix{};               // of 2 * hidden inputs
};

struct LayerWeights {
  BridgeWeights bridge;  // before the layer
  const float* attention_gain;  // [hidden]
  Matrix qkv;                   // query, key and value below each other
  Matrix attention_output;
  const float* ffn_gain;  // [hidden]
  Matrix gated;           // tiles of gate and up in turns
  Matrix down;
};

struct LayerCache {
  std::uint16_t* key;  // as in AttentionTensors
  std::uint16_t* value;
};

struct LayersShape {
  std::int64_t hidden;
  std::int64_t mixed;  // heads * head_dim
  std::int64_t qkv;    // (heads + 2 * kv_heads) * head_dim
  std::int64_t ffn;
  float epsilon;
};

// One step of some layers: x = residual + update; x += attention(norm(x)); x += ffn(norm(x)), ...
// What is to be added last is given apart, since the norm that follows adds it.
struct LayersTensors {
  const float* residual;   // [S, hidden]
  const float* update;     // [S, hidden], or null: zero
  const float* features;   // [S, hidden], what bridges read; null where there are none
  float* new_residual;     // [S, hidden]
  float* new_update;       // [S, hidden]
  const std::int32_t* rows;  // [4, S], see AttentionPlan
  const float* cosine;       // [P, head_dim / 2]
  const float* sine;         // [P, head_dim / 2]
};

// begin, then work in as many threads as there are ranges. Its memory is kept from step to step.
class LayersStep {
 public:
  // Throws Error where rows are not such.
  void begin(const LayersShape& shape, const AttentionShape& attention,
             const LayersTensors& tensors, const LayerCache* caches,
             const RowKernels& row_kernels, const AttentionKernels& attention_kernels,
             std::int64_t threads);

  void work(const LayerWeights* layers, std::size_t count, Stages::Thread& thread) noexcept;

 private:
  // A thread's way through the layers.
  struct Way {
    Stages::Thread& thread;
    float* stream;  // [S, hidden]
    float* other;   // where a bridge leads
    bool begun;     // whether the stream is there; else it is yet to be made of what the step was given
    Upcoming upcoming;  // of the next product

    template <class Work>
    void stage(std::int64_t count, const Work& work) {
      thread.stage(count, [this] { upcoming.ask(1); }, work);
    }
  };

  // Rounded rows that a product reads: one copy for all threads, made in a stage of its own, or,
  // where a single thread would make it while the others wait, one for each thread that multiplies.
  struct Operand {
    Rows shared;
    std::int64_t stride = 0;  // blocks of all rows from a thread's copy to the next; 0: one for all
    bool apart() const { return stride > 0; }
    Rows of(const Stages::Thread& thread) const;
  };

  void lead(const BridgeWeights& bridge, Way& way) noexcept;
  void attend(const LayerWeights& layer, const LayerCache& cache, Way& way) noexcept;
  void feed_forward(const LayerWeights& layer, bool last, Way& way) noexcept;
  Stream normed(const Way& way, const float* gain) const noexcept;
  void add_product(const Matrix& matrix, const Rows& rows, Way& way) noexcept;
  // make(rows, piece) for the pieces of the operand, then multiply(rows, begin, end).
  template <class Make, class Multiply>
  void multiply_made(const Operand& operand, const Make& make, const Matrix& matrix,
                     std::int64_t unit_tiles, Way& way, const Multiply& multiply) noexcept;
  template <class Multiply>
  void multiply(const Matrix& matrix, std::int64_t unit_tiles, Way& way,
                const Multiply& multiply) noexcept;

  LayersShape shape_{};
  LayersTensors tensors_{};
  const LayerCache* caches_ = nullptr;
  const RowKernels* kernels_ = nullptr;
  AttentionStep attention_;
  Operand hidden_rows_{}, mixed_rows_{};  // in the same memory: one at a time is in use
  Rows ffn_rows_{};
  Rows bridge_rows_{};
  float* squares_ = nullptr;  // [hidden / 16, S], of the stream
  float* spare_ = nullptr;    // [S, hidden]: streams lie here and in new_residual by turns, last there
  float* qkv_ = nullptr;      // [S, qkv]
  float* mixed_ = nullptr;    // [S, mixed]
  std::vector<float> floats_;
};

}  // namespace specdec::ops
