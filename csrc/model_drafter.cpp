#include <algorithm>

#include "drafter.h"

namespace specdec {

bool ModelDrafter::takes(const Sequence& sequence) const {
  // Its context may be shorter than the target's, and only its own texts may have to begin with a
  // certain token: then it drafts nothing.
  const std::int32_t first = decoder_->options().first_token;
  return sequence.length() <= decoder_->cache().capacity() &&
         (first < 0 || sequence.tokens().front() == first);
}

void ModelDrafter::start(const Sequence& sequence, const std::function<bool()>& stop) {
  KvCache& cache = decoder_->cache();
  const std::int32_t missing = sequence.length() - 1 - cache.length();
  if (missing < 1 || !takes(sequence)) return;
  decoder_->prefill(sequence.tokens().data() + cache.length(), missing, stop);
}

std::optional<StepRequest> ModelDrafter::begin(const Sequence& sequence,
                                               const DraftRequest& request, Sampler& sampler,
                                               Proposal& proposal) {
  KvCache& cache = decoder_->cache();
  const std::int32_t k = std::min(request.plan.depth, cache.capacity() - sequence.length());
  if (k < 1 || !takes(sequence)) return {};
  // After rounds without drafts it may be many tokens behind; else one or two.
  const std::int32_t most = decoder_->options().max_width;
  const std::int32_t* tokens = sequence.tokens().data();
  if (sequence.length() - cache.length() > most) {
    const std::int32_t count = sequence.length() - most - cache.length();
    decoder_->prefill(tokens + cache.length(), count, [] { return false; });
  }
  const std::int32_t behind = sequence.length() - cache.length();
  return draw_.begin(*decoder_, tokens + cache.length(), behind, k, request, sampler, proposal);
}

std::optional<StepRequest> AttachedDrafter::begin(const Sequence& sequence,
                                                  const DraftRequest& request, Sampler& sampler,
                                                  Proposal& proposal) {
  // The last token stands at `last`, and draft i is run in the column after i more.
  const std::int32_t last = sequence.length() - 1;
  const std::int32_t k = std::min(request.plan.depth, decoder_->cache().capacity() - last);
  if (k < 1 || !follower_.follow(last)) return {};
  return draw_.begin(*decoder_, &sequence.tokens()[last], 1, k, request, sampler, proposal);
}

}  // namespace specdec
