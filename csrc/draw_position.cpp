#include "draw_position.h"

#include <algorithm>

namespace specdec {
namespace {

// The policy's decision, within what there is.
Branch ask(std::int32_t i, const float* probabilities, std::int32_t n, const DraftRequest& request,
           const Proposal& proposal) {
  const std::int32_t room = request.nodes - proposal.nodes();
  if (room < 1) return {0, false};
  Branch branch = request.policy.branch(i, probabilities, n);
  branch.nodes = std::min({branch.nodes, n, request.plan.width, room});
  return branch;
}

}  // namespace

Branch draw_position(const LogitRow& row, std::int32_t i, const DraftRequest& request,
                     Sampler& sampler, Proposal& proposal) {
  const std::int32_t width = std::clamp(request.plan.width, 1, kMaxCandidates);
  const std::int32_t asked = std::clamp(request.plan.probabilities, 0, kMaxCandidates);
  float probabilities[kMaxCandidates];
  Candidates candidates;
  Branch branch{};
  if (request.rule == Rule::greedy) {
    candidates.count = sampler.best(row, width, candidates.tokens);
    const bool known = asked > 0 && row.logits != nullptr;
    if (known) sampler.confidences(row, candidates.tokens, candidates.count, probabilities);
    branch = ask(i, known ? probabilities : nullptr, candidates.count, request, proposal);
  } else {
    Distribution& q = proposal.next_distribution();
    const bool race = request.rule == Rule::coupled;
    sampler.distribution(row, false, q, race && asked == 0);
    if (race) {
      const auto offset = static_cast<std::uint32_t>(i);
      candidates.count = q.race(request.noise, offset, request.race, width, candidates.tokens);
      for (std::int32_t c = 0; asked > 0 && c < candidates.count; ++c) {
        probabilities[c] = static_cast<float>(q.probability(candidates.tokens[c]));
      }
      branch = ask(i, asked > 0 ? probabilities : nullptr, candidates.count, request, proposal);
    } else {
      // Nothing of what is drawn may decide on how much is drawn: see DraftPolicy.
      const std::int32_t n =
          asked > 0 ? q.greatest(asked, probabilities) : std::min(width, q.size());
      branch = ask(i, asked > 0 ? probabilities : nullptr, n, request, proposal);
      double us[kMaxCandidates];
      for (std::int32_t c = 0; c < branch.nodes; ++c) {
        us[c] = request.noise.uniform(Purpose::draft, candidate_offset(i, c));
      }
      if (branch.nodes > 0) {
        candidates.tokens[0] = q.sample(us[0]);
        candidates.count = branch.nodes = q.sample_others(us, branch.nodes, candidates.tokens);
      }
    }
  }
  candidates.nodes = branch.nodes;
  proposal.push(candidates);
  return branch;
}

}  // namespace specdec
