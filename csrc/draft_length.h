#pragma once

#include <cstdint>
#include <vector>

namespace specdec {

// What a round cost and gave.
struct RoundCost {
  std::int32_t drafted = 0;
  std::int32_t accepted = 0;
  double draft_seconds = 0;
  double target_seconds = 0;
};

// Chooses the draft length k that maximises committed tokens per second, from the rounds so far:
// Leviathan et al. 2211.17192, section 3, with measured costs in place of a constant ratio, and
// acceptance measured for each position. Device-free and without a clock.
class DraftLength {
 public:
  explicit DraftLength(std::int32_t max_k);

  std::int32_t choose();
  void observe(const RoundCost& round);

  // Expected committed tokens per second at k, by what was observed so far.
  double rate(std::int32_t k) const;

 private:
  // A mean that forgets.
  struct Mean {
    double value = 0;
    double weight = 0;
    void add(double x, double keep);
    void add_seconds(double seconds);
  };

  double target_seconds(std::int32_t width) const;
  std::int32_t best() const;

  std::int32_t max_k_;
  std::vector<Mean> acceptance_;      // [i]: draft i is accepted, given that those before it were
  std::vector<Mean> target_seconds_;  // [k]: of a step that checks k drafts
  Mean draft_seconds_;                // per draft
  std::int32_t rounds_ = 0;
  std::int32_t plain_rounds_left_ = 0;  // until the next probe
  std::int32_t probe_rounds_left_ = 0;
  std::int32_t plain_rounds_ = kFirstPause;
  static constexpr std::int32_t kFirstPause = 16;
  static constexpr std::int32_t kLongestPause = 256;
};

}  // namespace specdec
