#include "chain_draw.h"

#include "draw_position.h"

namespace specdec {

StepRequest ChainDraw::begin(Decoder& decoder, const std::int32_t* tokens, std::int32_t n,
                             std::int32_t depth, const DraftRequest& request, Sampler& sampler,
                             Proposal& proposal) {
  decoder_ = &decoder;
  request_.emplace(request);
  sampler_ = &sampler;
  proposal_ = &proposal;
  wanted_ = request.plan.width > 1 ? Wanted::logits : sampler.wanted();
  tokens_ = n;
  depth_ = depth;
  drawn_ = seen_ = 0;
  return {decoder_, tokens, n, 1, wanted_};
}

std::optional<StepRequest> ChainDraw::take(const LogitRows& rows) {
  decoder_->cache().commit(tokens_);
  const Branch branch = draw_position(rows.row(0), drawn_, *request_, *sampler_, *proposal_);
  if (branch.nodes < 1 || !branch.go_on || ++drawn_ == depth_) {
    sampler_->unsee(seen_);
    return {};
  }
  token_ = proposal_->chain().back();
  sampler_->see(token_);
  ++seen_;
  tokens_ = 1;
  return StepRequest{decoder_, &token_, 1, 1, wanted_};
}

}  // namespace specdec
