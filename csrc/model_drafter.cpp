#include <algorithm>

#include "drafter.h"

namespace specdec {

void ModelDrafter::start(const Sequence& sequence, const std::function<bool()>& stop) {
  KvCache& cache = decoder_->cache();
  const std::int32_t missing = sequence.length() - 1 - cache.length();
  // A context shorter than the target's: then it drafts nothing.
  if (missing < 1 || sequence.length() > cache.capacity()) return;
  decoder_->prefill(sequence.tokens().data() + cache.length(), missing, stop);
}

void ModelDrafter::propose(const Sequence& sequence, const DraftRequest& request,
                           Sampler& sampler, Proposal& proposal) {
  KvCache& cache = decoder_->cache();
  const std::int32_t k = std::min(request.k, cache.capacity() - sequence.length());
  if (k < 1) return;
  // After rounds without drafts it may be many tokens behind; else one or two.
  const std::int32_t most = decoder_->options().max_width;
  const std::int32_t* tokens = sequence.tokens().data();
  if (sequence.length() - cache.length() > most) {
    const std::int32_t count = sequence.length() - most - cache.length();
    decoder_->prefill(tokens + cache.length(), count, [] { return false; });
  }
  const std::int32_t behind = sequence.length() - cache.length();
  LogitRows rows = decoder_->forward(tokens + cache.length(), behind, 1);
  cache.commit(behind);
  for (std::int32_t i = 0; i < k; ++i) {
    Distribution& q = proposal.next_distribution();
    sampler.distribution({rows.row(0), rows.columns, decoder_->head_ids()}, false, q);
    const auto offset = static_cast<std::uint32_t>(i);
    const std::int32_t token = request.rule == Rule::coupled
                                   ? q.race(request.noise, offset, request.race)
                                   : q.sample(request.noise.uniform(Purpose::draft, offset));
    proposal.push(token);
    sampler.see(token);
    if (i + 1 == k) break;
    rows = decoder_->forward(&token, 1, 1);
    cache.commit(1);
  }
  sampler.unsee(k);
}

}  // namespace specdec
