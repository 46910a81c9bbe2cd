#pragma once

#include <cstdint>

#include "chain_draw.h"
#include "logits.h"
#include "proposal.h"
#include "sampler.h"

namespace specdec {

// Draws the candidates of the proposal's next position from a row of the drafter's logits, asks the
// policy how many of them are to be checked, and appends them, unless it takes none.
//
// Greedy: the drafter's most probable tokens. Coupled: the first to arrive in its race with the
// position's noise, which the target runs too. Token and block: draws without replacement, as many
// as are checked, the first one as in rounds of one candidate for each position.
Branch draw_position(const LogitRow& row, std::int32_t i, const DraftRequest& request,
                     Sampler& sampler, Proposal& proposal);

}  // namespace specdec
