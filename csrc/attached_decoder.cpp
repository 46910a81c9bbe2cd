#include "attached_decoder.h"

#include <algorithm>
#include <utility>

#include "error.h"

namespace specdec {
namespace {

DecoderOptions for_single_tokens(DecoderOptions o) {
  o.max_width = 1;
  o.max_logit_rows = 1;
  o.least_logit_rows = 1;
  return o;
}

std::shared_ptr<InPlaceDecoder> checked(std::shared_ptr<InPlaceDecoder> target,
                                        const std::vector<std::int32_t>& layers) {
  if (!target || target->hidden_size() < 1) {
    throw Error(ErrorCode::invalid_input,
                "an attached drafter needs a target whose graph gives hidden states");
  }
  check_target_layers(layers, target->cache().shape().layers);
  return target;
}

}  // namespace

void check_target_layers(std::vector<std::int32_t> chosen, std::int32_t layers) {
  // Two layers that shared one's K/V would write over each other's columns.
  std::sort(chosen.begin(), chosen.end());
  const bool distinct = std::adjacent_find(chosen.begin(), chosen.end()) == chosen.end();
  if (chosen.empty() || !distinct || chosen.front() < 0 || chosen.back() >= layers) {
    throw Error(ErrorCode::invalid_input,
                "an attached drafter needs different layers of the target, one for each of its own");
  }
}

AttachedKvCache::AttachedKvCache(const KvCache& target, std::int32_t capacity)
    : KvCache(std::min(target.capacity(), capacity)) {}

void AttachedKvCache::begin(std::int32_t width) { require_room(width); }

AttachedDecoder::AttachedDecoder(DecoderOptions options, std::shared_ptr<InPlaceDecoder> target,
                                 std::vector<std::int32_t> target_layers, std::int32_t context,
                                 Run run)
    : Decoder(for_single_tokens(std::move(options)), std::move(run)),
      target_(checked(std::move(target), target_layers)),
      target_layers_(std::move(target_layers)),
      cache_(target_->cache(), context),
      tokens_(1),
      seqlens_k_(1),
      total_length_(1),
      first_logit_row_(1),
      rows_(4),
      features_(static_cast<std::size_t>(target_->hidden_size())),
      hidden_(features_.size()),
      logits_(static_cast<std::size_t>(this->options().head_size)) {}

bool AttachedDecoder::follow(std::int32_t position) {
  features_for_ = -1;
  if (position != target_->cache().length()) return false;
  const float* before = target_->hidden(position - 1);
  if (before == nullptr) return false;
  std::copy_n(before, features_.size(), features_.data());
  features_for_ = position;
  cache_.follow(position);
  return true;
}

LogitRows AttachedDecoder::step(const std::int32_t* tokens, std::int32_t, std::int32_t logit_rows,
                                Wanted, const std::int32_t*) {
  const std::int32_t position = cache_.length();
  // The target's columns are never written to, whatever a caller forgot.
  if (position != features_for_ || position < target_->cache().length()) {
    throw Error(ErrorCode::invalid_input,
                "a step of an attached drafter continues the one before, or follows its target");
  }
  cache_.begin(1);
  tokens_[0] = tokens[0];
  seqlens_k_[0] = position;
  total_length_[0] = position + 1;
  rows_[0] = 0;
  rows_[1] = rows_[2] = position;
  rows_[3] = -1;
  run(1, 0);
  std::copy_n(hidden_.data(), hidden_.size(), features_.data());
  features_for_ = position + 1;
  return {logits_.data(), nullptr, logit_rows, options().head_size, head_ids()};
}

}  // namespace specdec
