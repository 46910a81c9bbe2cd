#include <algorithm>
#include <cmath>

#include "drafter.h"
#include "error.h"

namespace specdec {
namespace {

// FNV-1a over whole tokens. Two n-grams that collide cost a bad draft, never a wrong text.
std::uint64_t hash(const std::int32_t* tokens, std::int32_t n) {
  std::uint64_t value = 0xCBF29CE484222325u;
  for (std::int32_t i = 0; i < n; ++i) {
    value = (value ^ static_cast<std::uint32_t>(tokens[i])) * 0x100000001B3u;
  }
  return value;
}

}  // namespace

NgramDrafter::NgramDrafter(std::int32_t min_match, std::int32_t max_match)
    : min_match_(min_match), max_match_(max_match) {
  if (min_match < 1 || max_match < min_match) {
    throw Error(ErrorCode::invalid_input, "n-gram drafting needs 1 <= min_match <= max_match");
  }
  followers_.resize(static_cast<std::size_t>(max_match - min_match) + 1);
}

void NgramDrafter::start(const Sequence& sequence, const std::function<bool()>&) {
  for (auto& map : followers_) map.clear();
  indexed_ = 0;
  index(sequence.tokens());
}

void NgramDrafter::index(const std::vector<std::int32_t>& tokens) {
  for (; indexed_ < static_cast<std::int32_t>(tokens.size()); ++indexed_) {
    for (std::int32_t n = min_match_; n <= std::min(max_match_, indexed_); ++n) {
      followers_[n - min_match_][hash(tokens.data() + indexed_ - n, n)] = indexed_;
    }
  }
}

NgramDrafter::Match NgramDrafter::find(const Sequence& sequence) {
  const std::vector<std::int32_t>& tokens = sequence.tokens();
  const std::int32_t length = sequence.length();
  index(tokens);
  for (std::int32_t n = std::min(max_match_, length); n >= min_match_; --n) {
    const auto& map = followers_[n - min_match_];
    const auto found = map.find(hash(tokens.data() + length - n, n));
    // The longer the match the surer: by how much, the policy finds out.
    if (found != map.end()) return {found->second, static_cast<float>(1 - std::pow(0.6, n))};
  }
  return {0, 0};
}

void NgramDrafter::propose(const Sequence& sequence, const DraftRequest& request, Sampler&,
                           Proposal& proposal) {
  const Match match = find(sequence);
  if (match.sure == 0) return;
  // Past the end of the text the drafts follow themselves: a period goes on.
  const std::int32_t length = sequence.length();
  for (std::int32_t i = 0; i < request.plan.depth; ++i) {
    const Branch branch = request.policy.branch(i, &match.sure, 1);
    const std::int32_t from = match.follower + i;
    const std::int32_t token =
        from < length ? sequence.tokens()[from] : proposal.chain()[from - length];
    proposal.next_distribution().hold_one(token);
    proposal.push({{token}, 1, std::min(branch.nodes, 1)});
    if (branch.nodes < 1 || !branch.go_on) return;
  }
}

void MixedDrafter::start(const Sequence& sequence, const std::function<bool()>& stop) {
  ngram_.start(sequence, stop);
  model_->start(sequence, stop);
}

std::optional<StepRequest> MixedDrafter::begin(const Sequence& sequence,
                                               const DraftRequest& request, Sampler& sampler,
                                               Proposal& proposal) {
  Drafter& source = request.plan.lookup ? static_cast<Drafter&>(ngram_) : *model_;
  return source.begin(sequence, request, sampler, proposal);
}

}  // namespace specdec
