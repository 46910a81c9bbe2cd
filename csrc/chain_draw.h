#pragma once

#include <cstdint>
#include <optional>

#include "decoder.h"
#include "draft_policy.h"
#include "noise.h"
#include "proposal.h"
#include "race_noise.h"
#include "sampler.h"
#include "verify.h"

namespace specdec {

// What a drafter needs to know of the round it drafts for.
struct DraftRequest {
  DraftPlan plan;
  std::int32_t nodes;   // drafts that may be checked
  DraftPolicy& policy;  // to be asked after each step, and obeyed
  Rule rule;
  RoundNoise noise;
  RaceNoise& race;
};

// Draws drafts from a decoder, each from the step of the chain's draft before. It waits for its
// steps and leaves it to others to run them, alone or together with those of other sequences.
class ChainDraw {
 public:
  // Wants tokens[n] run, to draw drafts for at most `depth` positions, at least one.
  StepRequest begin(Decoder& decoder, const std::int32_t* tokens, std::int32_t n,
                    std::int32_t depth, const DraftRequest& request, Sampler& sampler,
                    Proposal& proposal);

  // Commits the step's tokens and draws from its last row; gives the step that the next draft is
  // drawn from, or none after the last, with the sampler as it was.
  std::optional<StepRequest> take(const LogitRows& rows);

 private:
  Decoder* decoder_ = nullptr;
  std::optional<DraftRequest> request_;
  Sampler* sampler_ = nullptr;
  Proposal* proposal_ = nullptr;
  Wanted wanted_ = Wanted::logits;
  std::int32_t tokens_ = 0;  // of the step
  std::int32_t depth_ = 0;   // positions at most
  std::int32_t drawn_ = 0;   // positions so far
  std::int32_t seen_ = 0;    // drafts that the sampler was told of
  std::int32_t token_ = 0;   // the chain's last
};

}  // namespace specdec
