#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "attached_decoder.h"
#include "batch_kv.h"
#include "batch_model.h"
#include "decoder.h"

namespace specdec {

// One sequence's decoder on a model that it shares with those of other sequences. What the engine
// and the drafters see of it is any decoder's; a step of its own runs alone.
class BatchDecoder : public Decoder {
 public:
  BatchModel& model() { return *model_; }
  std::int32_t sequence() const { return sequence_; }

  // forward() in two halves, around a run of the model that may be for others as well. What they
  // give is valid until the model's next run.
  StepPart begin_step(const StepRequest& request);
  LogitRows end_step(const StepPart& part);

 protected:
  BatchDecoder(DecoderOptions options, std::shared_ptr<BatchModel> model, std::int32_t sequence);

 private:
  LogitRows step(const std::int32_t* tokens, std::int32_t n, std::int32_t logit_rows,
                 Wanted wanted, const std::int32_t* parents) override;
  StepPart part(const std::int32_t* tokens, std::int32_t n, std::int32_t logit_rows, Wanted wanted,
                const std::int32_t* parents);

  virtual void began(StepPart& part) = 0;
  virtual void ended(const StepPart& part) = 0;

  std::shared_ptr<BatchModel> model_;
  std::int32_t sequence_;
};

// With K/V of its own: a target's, or a standalone drafter's.
class SequenceDecoder final : public BatchDecoder {
 public:
  // Of `options`, max_width and max_logit_rows are those of one sequence's part of a step.
  SequenceDecoder(DecoderOptions options, std::shared_ptr<BatchModel> model,
                  std::shared_ptr<BatchKv> kv, std::int32_t sequence);

  SequenceKvCache& cache() override { return cache_; }
  bool takes_trees() const override { return true; }
  void move_row(std::int32_t from, std::int32_t to) override;
  BatchKv& kv() { return *kv_; }

  // As InPlaceDecoder::hidden(), whatever other sequences ran since.
  const float* hidden(std::int32_t position) const;

 private:
  void began(StepPart& part) override;
  void ended(const StepPart& part) override;

  std::shared_ptr<BatchKv> kv_;
  SequenceKvCache cache_;
  std::int32_t step_tokens_ = 0;   // of the last step
  std::int32_t hidden_begin_ = 0;  // positions that hidden_ is of
  std::int32_t hidden_end_ = 0;
  std::vector<float> hidden_;  // [rows with logits, or the last one; hidden_size]
};

// Of an attached drafter, on the K/V of the same sequence of its target: as AttachedDecoder.
class AttachedSequenceDecoder final : public BatchDecoder, public Follower {
 public:
  AttachedSequenceDecoder(DecoderOptions options, std::shared_ptr<BatchModel> model,
                          std::shared_ptr<SequenceDecoder> target,
                          std::vector<std::int32_t> target_layers, std::int32_t context);

  AttachedKvCache& cache() override { return cache_; }
  bool follow(std::int32_t position) override;

  SequenceDecoder& target() { return *target_; }
  const std::vector<std::int32_t>& target_layers() const { return target_layers_; }

 private:
  void began(StepPart& part) override;
  void ended(const StepPart& part) override;

  std::shared_ptr<SequenceDecoder> target_;
  std::vector<std::int32_t> target_layers_;
  AttachedKvCache cache_;
  std::int32_t features_for_ = -1;  // the position whose step the features are for
  std::vector<float> features_;     // [hidden_size]
};

}  // namespace specdec
