#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "distribution.h"
#include "verify.h"

namespace specdec {

// Candidates for one position, in the order in which they were drawn, or of their rank. The target
// checks the first `nodes`; the first of all is the chain's.
struct Candidates {
  std::int32_t tokens[kMaxCandidates];
  std::int32_t count = 0;
  std::int32_t nodes = 0;
};

// The drafts of one round: a chain, and beside its drafts siblings that are leaves.
class Proposal {
 public:
  void clear() {
    chain_.clear();
    siblings_.clear();
    first_sibling_.assign(1, 0);
    positions_.clear();
  }

  std::int32_t depth() const { return static_cast<std::int32_t>(chain_.size()); }
  std::int32_t nodes() const { return depth() + static_cast<std::int32_t>(siblings_.size()); }
  const std::vector<std::int32_t>& chain() const { return chain_; }
  std::int32_t sibling(std::int32_t index) const { return siblings_[index]; }
  // Positions that were drafted for: one more than depth() where none of the last one's candidates
  // is checked.
  std::int32_t positions() const { return static_cast<std::int32_t>(positions_.size()); }
  const Candidates& position(std::int32_t i) const { return positions_[i]; }

  // The distribution of the next position's drafts, to be filled before push().
  Distribution& next_distribution() {
    if (q_.size() <= chain_.size()) q_.resize(chain_.size() + 1);
    return q_[chain_.size()];
  }

  // Nothing follows candidates without a node.
  void push(const Candidates& candidates) {
    positions_.push_back(candidates);
    if (candidates.nodes < 1) return;
    chain_.push_back(candidates.tokens[0]);
    siblings_.insert(siblings_.end(), candidates.tokens + 1, candidates.tokens + candidates.nodes);
    first_sibling_.push_back(static_cast<std::int32_t>(siblings_.size()));
  }

  Drafts drafts() const {
    return {chain_.data(), q_.data(), depth(), siblings_.data(), first_sibling_.data()};
  }

  // Appends the rows of a step: the chain, then the siblings. `parents` is of the tokens before it,
  // whose last one the first draft follows.
  void append_to(std::vector<std::int32_t>& tokens, std::vector<std::int32_t>& parents) const {
    const auto before = static_cast<std::int32_t>(tokens.size()) - 1;
    tokens.insert(tokens.end(), chain_.begin(), chain_.end());
    tokens.insert(tokens.end(), siblings_.begin(), siblings_.end());
    for (std::int32_t i = 0; i < depth(); ++i) parents.push_back(before + i);
    for (std::int32_t i = 0; i < depth(); ++i) {
      const std::int32_t count = first_sibling_[i + 1] - first_sibling_[i];
      parents.insert(parents.end(), static_cast<std::size_t>(count), before + i);
    }
  }

 private:
  std::vector<std::int32_t> chain_;
  std::vector<std::int32_t> siblings_;
  std::vector<std::int32_t> first_sibling_{0};  // [depth + 1]
  std::vector<Candidates> positions_;
  std::vector<Distribution> q_;  // kept between rounds for their storage
};

}  // namespace specdec
