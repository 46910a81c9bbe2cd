#include <algorithm>
#include <thread>

#include "attention_operands.h"
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

class CachedAttention final : public Kernel {
 public:
  explicit CachedAttention(const Node& node)
      : heads_(node.integer("heads")),
        kv_heads_(node.integer("kv_heads")),
        kernels_(attention_kernels(isa_named(node.text("isa", "auto")))),
        threads_(std::max(1u, std::thread::hardware_concurrency())) {
    check_heads(heads_, kv_heads_);
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
    tensors.key = take_over(call.input_data<std::uint16_t>(kPastKey),
                            call.output<std::uint16_t>(kPresentKey, cache), cache);
    tensors.value = take_over(call.input_data<std::uint16_t>(kPastValue),
                              call.output<std::uint16_t>(kPresentValue, cache), cache);
    if (tensors.mixed == nullptr || tensors.key == nullptr || tensors.value == nullptr) {
      refuse("all outputs must be used");
    }
    if (shape.rows == 0) return;

    // By thread and not by kernel: sessions may be run from several threads, layers run in turn.
    static thread_local AttentionStep step;
    AttentionStep& mine = step;
    mine.begin(shape, tensors, kernels_, threads_);
    if (shape.rows < kManyRows) {
      for (std::size_t i = 0; i < mine.writes(); ++i) mine.run_write(i);
    } else {
      call.parallel(mine.writes(), [&mine](std::size_t i) noexcept { mine.run_write(i); });
    }
    call.parallel(mine.workers(), [&mine](std::size_t) noexcept { mine.work(); });
  }

 private:
  AttentionShape checked(const Call& call, const Shape& cache) const {
    const Shape qkv = call.input(kQkv).shape();
    if (qkv.rank() != 3) refuse("qkv is " + qkv.text() + ", not [1, rows, features]");
    const AttentionShape shape =
        attention_shape(qkv[1], heads_, kv_heads_, cache, call.input(kRows).shape(),
                        call.input(kCosine).shape(), call.input(kSine).shape());
    require(qkv, {1, qkv[1], (heads_ + 2 * kv_heads_) * shape.head_dim}, "qkv");
    require(call.input(kPastValue).shape(), cache, "past_value");
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
           {"past_key", ElementType::float16},
           {"past_value", ElementType::float16},
           {"rows", ElementType::int32},
           {"cosine", ElementType::float32},
           {"sine", ElementType::float32}},
          {{"mixed", ElementType::float32},
           {"present_key", ElementType::float16},
           {"present_value", ElementType::float16}},
          [](const Node& node) -> std::unique_ptr<Kernel> {
            return std::make_unique<CachedAttention>(node);
          }};
}

}  // namespace specdec::ops
