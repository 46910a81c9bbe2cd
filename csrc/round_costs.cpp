#include "round_costs.h"

#include <algorithm>

namespace specdec {
namespace {

constexpr double kDraftGuess = 0.2;  // cost of a shared drafter step, before one was run
constexpr double kCompanyRate = 0.2;
constexpr double kCompanyReturn = 0.01;
constexpr double kLookShare = 0.006;       // of the time may go into looks
constexpr std::int32_t kPlainEvery = 64;   // rounds with drafts, before one without

}  // namespace

void Company::begin(std::int32_t sequences,
                    const std::function<std::optional<double>(std::int32_t)>& gain) {
  round_ = since_plain_ < kPlainEvery ? Round::free : Round::plain;
  drafting_ = sequences;
  double tokens = 0;  // that plain rounds gave since, of those that could draft
  double loss = 0;    // if all of them did
  for (std::int32_t before = sequences + 1; drafting_ > 0 && drafting_ < before;) {
    const bool all = drafting_ == sequences;
    before = drafting_;
    std::int32_t gaining = 0;
    for (std::int32_t i = 0; i < sequences; ++i) {
      const std::optional<double> expected = gain(i);
      if (!expected) continue;
      if (*expected > 0) ++gaining;
      if (all) {
        tokens += since_draft_;
        loss -= std::min(*expected, 0.0);
      }
    }
    drafting_ = gaining;
  }
  if (drafting_ > 0 || tokens * kLookShare <= loss) return;
  round_ = Round::look;
  drafting_ = sequences;
}

void Company::add(std::int32_t depth, std::int32_t drafting) {
  if (depth > 0) {
    const auto i = static_cast<std::size_t>(depth);
    if (share_.size() <= i) share_.resize(i + 1, 1.0);
    if (drafting > 0) {
      share_[i] += kCompanyRate * (static_cast<double>(drafting) / began_ - share_[i]);
    } else {
      share_[i] += kCompanyReturn * (1 - share_[i]);
    }
    return;
  }
  began_ = drafting;
  since_draft_ = drafting > 0 || round_ == Round::look ? 0 : since_draft_ + 1;
  since_plain_ = drafting > 0 ? since_plain_ + 1 : 0;
}

double Company::at(std::int32_t depth) const {
  const auto i = static_cast<std::size_t>(depth);
  const double share = depth > 0 && i < share_.size() ? share_[i] : 1.0;
  return std::max(share * drafting_, 1.0);
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
  const double drafting = shared_->company->at(depth);
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
