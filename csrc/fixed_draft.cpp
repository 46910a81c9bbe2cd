#include <algorithm>

#include "draft_policy.h"

namespace specdec {

DraftPlan FixedDraft::begin(const DraftLimits& limits) {
  plan_ = {std::min(depth_, limits.depth), std::min(width_, limits.width), 0};
  nodes_left_ = limits.nodes;
  return plan_;
}

}  // namespace specdec
