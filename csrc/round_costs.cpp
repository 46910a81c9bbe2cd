#include "round_costs.h"

#include <algorithm>

namespace specdec {
namespace {

constexpr double kDraftGuess = 0.2;  // cost of a shared drafter step, before one was run
constexpr double kCompanyRate = 0.2;
constexpr double kCompanyReturn = 0.01;

}  // namespace

void Company::add(std::int32_t depth, std::int32_t drafting, std::int32_t sequences) {
  const auto i = static_cast<std::size_t>(depth);
  if (share_.size() <= i) share_.resize(i + 1, 1.0);
  if (drafting > 0) {
    share_[i] += kCompanyRate * (static_cast<double>(drafting) / sequences - share_[i]);
  } else {
    share_[i] += kCompanyReturn * (1 - share_[i]);
  }
}

double Company::at(std::int32_t depth, std::int32_t sequences) const {
  const auto i = static_cast<std::size_t>(depth);
  const double share = i < share_.size() ? share_[i] : 1.0;
  return std::max(share * sequences, 1.0);
}

double RoundCosts::target(std::int32_t rows) const {
  if (!shared_) return own_.target(rows);
  const std::int32_t all = std::min(rows * shared_->sequences, shared_->target->max_rows());
  return shared_->target->target(all) / shared_->sequences;
}

double RoundCosts::draft(std::int32_t depth) const {
  if (!shared_) return own_.draft();
  if (shared_->draft == nullptr) return 0;
  if (!shared_->draft->known(shared_->sequences)) return kDraftGuess * target(1);
  const double drafting = shared_->company->at(depth, shared_->sequences);
  const auto whole = std::min(static_cast<std::int32_t>(drafting), shared_->draft->max_rows());
  const std::int32_t more = std::min(whole + 1, shared_->draft->max_rows());
  const double low = shared_->draft->target(whole);
  return (low + (drafting - whole) * (shared_->draft->target(more) - low)) / drafting;
}

std::int32_t RoundCosts::runs(std::int32_t rows) const {
  if (!shared_) return own_.runs(rows);
  return shared_->target->known(rows * shared_->sequences) ? kFewRuns : 0;
}

void RoundCosts::add(std::int32_t rows, double target_seconds, std::int32_t drafts,
                     double draft_seconds) {
  if (shared_) return;
  own_.add_target(rows, target_seconds);
  if (drafts > 0) own_.add_draft(draft_seconds / drafts);
}

}  // namespace specdec
