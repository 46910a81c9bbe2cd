#pragma once

#include <cstdint>
#include <vector>

#include "attention_step.h"
#include "linear.h"
#include "row_kernels.h"
#include "stages.h"

namespace specdec::ops {

struct LayerWeights {
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
  void attend(const LayerWeights& layer, const LayerCache& cache, Stages::Thread& thread) noexcept;
  void feed_forward(const LayerWeights& layer, bool last, Stages::Thread& thread) noexcept;
  Stream normed(const float* gain) const noexcept;
  void add_product(const Matrix& matrix, const Rows& rows, Stages::Thread& thread) noexcept;
  template <class Multiply>
  void multiply(const Matrix& matrix, std::int64_t unit_tiles, Stages::Thread& thread,
                const Multiply& multiply) noexcept;

  LayersShape shape_{};
  LayersTensors tensors_{};
  const LayerCache* caches_ = nullptr;
  const RowKernels* kernels_ = nullptr;
  AttentionStep attention_;
  Rows hidden_rows_{}, mixed_rows_{};  // in the same memory: one at a time is in use
  Rows ffn_rows_{};
  float* squares_ = nullptr;  // [hidden / 16, S], of the stream, which is new_residual all along
  float* qkv_ = nullptr;      // [S, qkv]
  float* mixed_ = nullptr;    // [S, mixed]
  std::vector<float> floats_;
};

}  // namespace specdec::ops
