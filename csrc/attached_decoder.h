#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "aligned_buffer.h"
#include "decoder.h"
#include "in_place_decoder.h"
#include "kv_cache.h"

namespace specdec {

// The columns behind those that a target has committed, in the target's own memory: the target
// writes over each of them before it reads it, so nothing has to be taken back.
class AttachedKvCache final : public KvCache {
 public:
  // Leaves the columns from `capacity` on alone.
  AttachedKvCache(const KvCache& target, std::int32_t capacity);

  void begin(std::int32_t width) override;
  void commit(std::int32_t columns) override { length_ += columns; }

  // From here on the next step's column is the target's next one.
  void follow(std::int32_t length) { length_ = length; }
};

// What an attached drafter asks of its model's decoder before each round.
class Follower {
 public:
  // Begins a round: the next step is for the token at `position`. False, and nothing may be run,
  // unless that is the target's next column and the hidden state before it is at hand.
  virtual bool follow(std::int32_t position) = 0;

 protected:
  ~Follower() = default;
};

// Throws Error unless these are different layers of a target's `layers`, one or more.
void check_target_layers(std::vector<std::int32_t> chosen, std::int32_t layers);

// A drafter's model without a past of its own. Each of its layers attends to the K/V of one of the
// target's layers, and every step also reads the final hidden state of the position before: the
// target's in the first step of a round, then its own. It runs one token at a time.
class AttachedDecoder final : public Decoder, public Follower {
 public:
  // target_layers[i] is the target's layer that layer i shares K/V with; `context` the positions
  // that the model itself can take. Of `options`, max_width and max_logit_rows are set to 1.
  AttachedDecoder(DecoderOptions options, std::shared_ptr<InPlaceDecoder> target,
                  std::vector<std::int32_t> target_layers, std::int32_t context, Run run);

  AttachedKvCache& cache() override { return cache_; }

  bool follow(std::int32_t position) override;

  // Buffers that sessions are bound to.
  AlignedBuffer<std::int64_t>& tokens() { return tokens_; }              // [1]
  AlignedBuffer<std::int32_t>& seqlens_k() { return seqlens_k_; }        // [1] total length - 1
  AlignedBuffer<std::int32_t>& total_length() { return total_length_; }  // scalar
  AlignedBuffer<std::int64_t>& first_logit_row() { return first_logit_row_; }  // [1], always 0
  AlignedBuffer<std::int32_t>& rows() { return rows_; }   // [4, 1], as in InPlaceDecoder
  AlignedBuffer<float>& features() { return features_; }  // [hidden]
  AlignedBuffer<float>& hidden() { return hidden_; }      // [hidden]
  AlignedBuffer<float>& logits() { return logits_; }      // [head_size]

  InPlaceDecoder& target() { return *target_; }
  const std::vector<std::int32_t>& target_layers() const { return target_layers_; }

 private:
  LogitRows step(const std::int32_t* tokens, std::int32_t n, std::int32_t logit_rows,
                 Wanted wanted, const std::int32_t* parents) override;

  std::shared_ptr<InPlaceDecoder> target_;
  std::vector<std::int32_t> target_layers_;
  AttachedKvCache cache_;
  std::int32_t features_for_ = -1;  // the position whose step the features are for
  AlignedBuffer<std::int64_t> tokens_;
  AlignedBuffer<std::int32_t> seqlens_k_;
  AlignedBuffer<std::int32_t> total_length_;
  AlignedBuffer<std::int64_t> first_logit_row_;
  AlignedBuffer<std::int32_t> rows_;
  AlignedBuffer<float> features_;
  AlignedBuffer<float> hidden_;
  AlignedBuffer<float> logits_;
};

}  // namespace specdec
