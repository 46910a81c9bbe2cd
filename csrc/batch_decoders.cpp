#include "batch_decoders.h"

#include <algorithm>
#include <utility>

#include "error.h"

namespace specdec {
namespace {

DecoderOptions for_single_tokens(DecoderOptions o) {
  o.max_width = 1;
  o.max_logit_rows = 1;
  return o;
}

template <class T>
std::shared_ptr<T> present(std::shared_ptr<T> part) {
  if (!part) {
    throw Error(ErrorCode::invalid_input, "a decoder of a batch needs a model and its K/V");
  }
  return part;
}

}  // namespace

BatchDecoder::BatchDecoder(DecoderOptions options, std::shared_ptr<BatchModel> model,
                           std::int32_t sequence)
    : Decoder(std::move(options), {}), model_(present(std::move(model))), sequence_(sequence) {
  const DecoderOptions& o = this->options();
  if (!model_->fits(o.max_width, o.max_logit_rows) || model_->sizes().head_size != o.head_size) {
    throw Error(ErrorCode::invalid_input,
                "the steps of one sequence must fit into those of its batch");
  }
}

StepPart BatchDecoder::begin_step(const StepRequest& request) {
  const std::int32_t* tokens =
      admit(request.tokens, request.n, request.logit_rows, request.parents);
  return part(tokens, request.n, request.logit_rows, request.wanted, request.parents);
}

StepPart BatchDecoder::part(const std::int32_t* tokens, std::int32_t n, std::int32_t logit_rows,
                            Wanted wanted, const std::int32_t* parents) {
  StepPart part{sequence_, cache().length(), tokens, n, logit_rows, parents, wanted};
  cache().begin(n);
  began(part);
  return part;
}

LogitRows BatchDecoder::end_step(const StepPart& part) {
  count_run(part.seconds);
  ended(part);
  return model_->logits_of(part, head_ids());
}

LogitRows BatchDecoder::step(const std::int32_t* tokens, std::int32_t n, std::int32_t logit_rows,
                             Wanted wanted, const std::int32_t* parents) {
  StepPart alone = part(tokens, n, logit_rows, wanted, parents);
  model_->run(&alone, 1);
  return end_step(alone);
}

// --- with K/V of its own ---

SequenceDecoder::SequenceDecoder(DecoderOptions options, std::shared_ptr<BatchModel> model,
                                 std::shared_ptr<BatchKv> kv, std::int32_t sequence)
    : BatchDecoder(std::move(options), std::move(model), sequence),
      kv_(present(std::move(kv))),
      cache_(*kv_) {
  if (sequence < 0 || sequence >= kv_->sequences()) {
    throw Error(ErrorCode::invalid_input, "the batch has K/V for no such sequence");
  }
}

void SequenceDecoder::began(StepPart&) {
  hidden_end_ = hidden_begin_ = cache_.length();  // a run that fails leaves rows of no use
}

void SequenceDecoder::ended(const StepPart& part) {
  step_tokens_ = part.n;
  const std::int32_t size = model().sizes().hidden_size;
  if (size < 1) return;
  // Of a prefill, only the last row's position can be asked for before the next step.
  const std::int32_t kept = std::max(part.logit_rows, 1);
  hidden_.resize(static_cast<std::size_t>(kept) * static_cast<std::size_t>(size));
  for (std::int32_t i = 0; i < kept; ++i) {
    std::copy_n(model().hidden(part, part.n - kept + i), size, hidden_.data() + i * size);
  }
  hidden_end_ = part.length + part.n;
  hidden_begin_ = hidden_end_ - kept;
}

const float* SequenceDecoder::hidden(std::int32_t position) const {
  const std::int32_t end = std::min(hidden_end_, cache_.length());
  if (position < hidden_begin_ || position >= end) return nullptr;
  const auto size = static_cast<std::ptrdiff_t>(hidden_.size()) / (hidden_end_ - hidden_begin_);
  return hidden_.data() + (position - hidden_begin_) * size;
}

void SequenceDecoder::move_row(std::int32_t from, std::int32_t to) {
  if (to < 0 || to > from || from >= step_tokens_) {
    throw Error(ErrorCode::invalid_input, "a row takes the place of one before it in its step");
  }
  const std::int32_t begin = cache_.length();
  kv_->move(sequence(), begin + from, begin + to);
  const std::int32_t kept = hidden_end_ - hidden_begin_;
  const std::int32_t skipped = hidden_begin_ - begin;  // rows whose states were not kept
  if (kept < 1 || from == to || to < skipped) return;
  const auto size = static_cast<std::ptrdiff_t>(hidden_.size()) / kept;
  std::copy_n(hidden_.data() + (from - skipped) * size, size, hidden_.data() + (to - skipped) * size);
}

// --- attached ---

AttachedSequenceDecoder::AttachedSequenceDecoder(DecoderOptions options,
                                                 std::shared_ptr<BatchModel> model,
                                                 std::shared_ptr<SequenceDecoder> target,
                                                 std::vector<std::int32_t> target_layers,
                                                 std::int32_t context)
    : BatchDecoder(for_single_tokens(std::move(options)), std::move(model),
                   present(target)->sequence()),
      target_(std::move(target)),
      target_layers_(std::move(target_layers)),
      cache_(target_->cache(), context),
      features_(static_cast<std::size_t>(this->model().sizes().hidden_size)) {
  const BatchModel::Sizes& sizes = this->model().sizes();
  check_target_layers(target_layers_, target_->kv().shape().layers);
  if (!sizes.takes_features || target_->model().sizes().hidden_size != sizes.hidden_size) {
    throw Error(ErrorCode::invalid_input,
                "an attached drafter needs a target whose graph gives hidden states");
  }
}

bool AttachedSequenceDecoder::follow(std::int32_t position) {
  features_for_ = -1;
  if (position != target_->cache().length()) return false;
  const float* before = target_->hidden(position - 1);
  if (before == nullptr) return false;
  std::copy_n(before, features_.size(), features_.data());
  features_for_ = position;
  cache_.follow(position);
  return true;
}

void AttachedSequenceDecoder::began(StepPart& part) {
  // The target's columns are never written to, whatever a caller forgot.
  if (part.length != features_for_ || part.length < target_->cache().length()) {
    throw Error(ErrorCode::invalid_input,
                "a step of an attached drafter continues the one before, or follows its target");
  }
  part.features = features_.data();
}

void AttachedSequenceDecoder::ended(const StepPart& part) {
  std::copy_n(model().hidden(part, 0), features_.size(), features_.data());
  features_for_ = part.length + 1;
}

}  // namespace specdec
