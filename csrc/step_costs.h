#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

namespace specdec {

// What steps cost: seconds of a target step by its rows and of one drafter step, from noisy
// measurements.
//
// log seconds = log scale + log shape[of what was run] + noise. The scale follows the machine as a
// whole (its clock, other programs, a growing context); the shape, which is all that a choice
// depends on, hardly moves. Both are means with a variance, updated as by a Kalman filter whose
// covariance is kept diagonal; the noise is estimated too, and a measurement far outside it counts
// for little. So what was measured in a slow second is not held against what was run in it.
class StepCosts {
 public:
  explicit StepCosts(std::int32_t max_rows);

  void add_target(std::int32_t rows, double seconds);
  void add_draft(double seconds);  // of one step
  void pause();                    // time passed: the machine may be faster or slower now

  // Steps come behind so many tokens from here on. Where those are many more or fewer than what costs
  // were learnt behind, all is forgotten: what many rows cost grows faster with the context than what
  // one costs. Whether it was.
  bool move_behind(std::int32_t length);

  // Seconds, non-decreasing in rows, 1 <= rows <= max_rows. Between widths that were run on
  // straight lines through them, beyond them on the line fitted to all.
  double target(std::int32_t rows) const { return seconds_ * curve_[rows]; }
  double draft() const { return draft_seconds_; }

  // How often the target ran this many rows.
  std::int32_t runs(std::int32_t rows) const { return runs_[rows]; }
  std::int32_t max_rows() const { return max_rows_; }
  // Whether the target ran so many rows or fewer. What wider steps cost, such as a prefill's, tells
  // nothing of how a narrow one grows with its rows.
  bool known(std::int32_t rows) const {
    const auto end = runs_.begin() + std::min(rows, max_rows_) + 1;
    return std::any_of(runs_.begin(), end, [](std::int32_t runs) { return runs > 0; });
  }

 private:
  struct Estimate {
    double mean;
    double variance;
  };

  // The first few of some measurements, of which one may have been interrupted.
  struct Firsts {
    std::array<double, 3> values;
    std::int32_t count = 0;
    bool add(double value);  // false where there are enough already
    bool full() const { return count == static_cast<std::int32_t>(values.size()); }
    double middle() const { return values[(count - 1) / 2]; }  // the lesser one of two
  };

  // Widths whose cost is taken to be the same.
  struct Block {
    std::int32_t first, last;
    double value, weight;
  };

  void add(Estimate& shape, double seconds);
  void update(Estimate& shape, double seconds);
  void refresh();

  std::int32_t max_rows_;
  std::int32_t length_ = 0;      // that steps came behind when the first of these was measured
  Estimate scale_;               // log seconds
  Estimate draft_;               // log of a drafter step over the scale
  std::vector<Estimate> shape_;  // [rows], log of a target step over the scale; [0] unused
  std::vector<std::int32_t> runs_;
  std::vector<double> relative_;  // [rows], of which shape_ is the log
  std::vector<Block> blocks_;
  std::vector<double> curve_;    // [rows], what is made of shape_
  double seconds_ = 1;           // that the scale stands for
  double draft_seconds_;
  Firsts first_scales_;
  Firsts first_drafts_;
  double spread_;                // mean deviation of log seconds from what was expected
};

}  // namespace specdec
