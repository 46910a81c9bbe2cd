#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <thread>

#include "attention_step.h"
#include "op.h"

namespace specdec::ops {

AttentionKernels attention_kernels(Isa isa) {
  switch (isa) {
#if defined(SPECDEC_OPS_X86)
    case Isa::avx512:
      return attention_avx512();
    case Isa::avx2:
      return attention_avx2();
#elif defined(SPECDEC_OPS_ARM)
    case Isa::neon:
      return attention_neon();
#endif
    default:
      return attention_plain();
  }
}

namespace {

constexpr std::int64_t kManyRows = 64;  // from here on rows are written by all threads

enum Input : std::size_t { kQkv, kPastKey, kPastValue, kRows, kCosine, kSine };
enum Output : std::size_t { kMixed, kPresentKey, kPresentValue };

void require(const Shape& shape, const Shape& expected, const char* name) {
  if (shape != expected) {
    refuse(std::string(name) + " is " + shape.text() + ", not " + expected.text());
  }
}

std::int32_t narrow(std::int64_t size, const char* what) {
  if (size > std::numeric_limits<std::int32_t>::max()) refuse(std::string(what) + " is too long");
  return static_cast<std::int32_t>(size);
}

// The memory that a cache is read from and written to.
float* take_over(const float* past, float* present, const Shape& cache) {
  if (past != present && present != nullptr) {
    std::memcpy(present, past,
                sizeof(float) * static_cast<std::size_t>(cache[0] * cache[1] * cache[2] * cache[3]));
  }
  return present;
}

class CachedAttention final : public Kernel {
 public:
  explicit CachedAttention(const Node& node)
      : heads_(node.integer("heads")),
        kv_heads_(node.integer("kv_heads")),
        kernels_(attention_kernels(isa_named(node.text("isa", "auto")))),
        threads_(std::max(1u, std::thread::hardware_concurrency())) {
    if (kv_heads_ < 1 || heads_ < 1 || heads_ > 4096 || heads_ % kv_heads_ != 0) {
      refuse("heads is " + std::to_string(heads_) + " and kv_heads " + std::to_string(kv_heads_) +
             "; heads must be a positive multiple of kv_heads, at most 4096");
    }
  }

  void compute(const Call& call) const override {
    const Shape cache = call.input(kPastKey).shape();
    const AttentionShape shape = checked(call, cache);
    AttentionTensors tensors;
    tensors.qkv = call.input_data<float>(kQkv);
    tensors.rows = call.input_data<std::int32_t>(kRows);
    tensors.cosine = call.input_data<float>(kCosine);
    tensors.sine = call.input_data<float>(kSine);
    tensors.mixed = call.output<float>(
        kMixed, {1, shape.rows, std::int64_t{shape.heads} * shape.head_dim});
    tensors.key = take_over(call.input_data<float>(kPastKey),
                            call.output<float>(kPresentKey, cache), cache);
    tensors.value = take_over(call.input_data<float>(kPastValue),
                              call.output<float>(kPresentValue, cache), cache);
    if (tensors.mixed == nullptr || tensors.key == nullptr || tensors.value == nullptr) {
      refuse("all outputs must be used");
    }
    if (shape.rows == 0) return;

    // By thread and not by kernel: sessions may be run from several threads, layers run in turn.
    static thread_local AttentionStep step;
    AttentionStep& mine = step;
    mine.begin(shape, tensors, kernels_, threads_);
    if (shape.rows < kManyRows) {
      for (std::int32_t row = 0; row < shape.rows; ++row) mine.write_row(row);
    } else {
      call.parallel(shape.rows, [&mine](std::size_t row) noexcept { mine.write_row(row); });
    }
    call.parallel(mine.workers(), [&mine](std::size_t) noexcept { mine.work(); });
  }

 private:
  AttentionShape checked(const Call& call, const Shape& cache) const {
    const Shape qkv = call.input(kQkv).shape();
    const Shape cosine = call.input(kCosine).shape();
    if (cache.rank() != 4 || cache[1] != kv_heads_) {
      refuse("past_key is " + cache.text() + ", not [sequences, " + std::to_string(kv_heads_) +
             " K/V heads, capacity, head_dim]");
    }
    const std::int64_t head_dim = cache[3];
    if (head_dim < 8 || head_dim > kLargestHeadDim || head_dim % 8 != 0) {
      refuse("head_dim is " + std::to_string(head_dim) + "; it must be a multiple of 8, at most " +
             std::to_string(kLargestHeadDim));
    }
    if (qkv.rank() != 3) refuse("qkv is " + qkv.text() + ", not [1, rows, features]");
    if (cosine.rank() != 2) refuse("cosine is " + cosine.text() + ", not [positions, head_dim / 2]");
    require(qkv, {1, qkv[1], (heads_ + 2 * kv_heads_) * head_dim}, "qkv");
    require(call.input(kPastValue).shape(), cache, "past_value");
    require(call.input(kRows).shape(), {4, qkv[1]}, "rows");
    require(cosine, {cosine[0], head_dim / 2}, "cosine");
    require(call.input(kSine).shape(), cosine, "sine");
    AttentionShape shape;
    shape.rows = narrow(qkv[1] * heads_, "the step") / static_cast<std::int32_t>(heads_);
    shape.heads = static_cast<std::int32_t>(heads_);
    shape.kv_heads = static_cast<std::int32_t>(kv_heads_);
    shape.head_dim = static_cast<std::int32_t>(head_dim);
    shape.sequences = narrow(cache[0], "the list of sequences");
    shape.capacity = narrow(cache[2], "the cache");
    shape.positions = narrow(cosine[0], "the rotary table");
    return shape;
  }

  std::int64_t heads_;
  std::int64_t kv_heads_;
  AttentionKernels kernels_;
  std::size_t threads_;
};

}  // namespace

Declaration cached_attention() {
  return {"CachedAttention",
          {{"qkv", ElementType::float32},
           {"past_key", ElementType::float32},
           {"past_value", ElementType::float32},
           {"rows", ElementType::int32},
           {"cosine", ElementType::float32},
           {"sine", ElementType::float32}},
          {{"mixed", ElementType::float32},
           {"present_key", ElementType::float32},
           {"present_value", ElementType::float32}},
          [](const Node& node) -> std::unique_ptr<Kernel> {
            return std::make_unique<CachedAttention>(node);
          }};
}

}  // namespace specdec::ops
