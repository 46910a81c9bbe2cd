#pragma once

#include <cstdint>
#include <vector>

#include "distribution.h"
#include "logits.h"

namespace specdec {

// Which tokens of a row keep their weight: of the top_k heaviest (0: all) the smallest set with at
// least top_p of their mass, and of these those with at least min_p of the greatest weight. Equal
// weights are kept in the order of their ids.
//
// Nothing is sorted as a whole, and few weights are kept: a pass over the logits finds the maxima
// of small blocks, these (for a nucleus what all tokens weigh, a second pass) a bar that hardly
// anything but what is kept lies above, and the exact cut is made among the few that pass it.
class Truncation {
 public:
  struct Limits {
    std::int32_t top_k;  // 0: all
    double top_p;        // 1: all
    double min_p;        // 0: all
  };

  // Whether they cut anything of a row of this size.
  static bool cuts(const Limits& limits, std::int32_t size) {
    return (limits.top_k > 0 && limits.top_k < size) || limits.top_p < 1 || limits.min_p > 0;
  }

  // What is kept of the row, in `out`'s own storage: weights 2^((logit - greatest) * scale). False
  // where the logits are no finite numbers.
  bool keep(const LogitRow& row, float scale, const Limits& limits, Distribution& out);

 private:
  // All weights above `weight` are kept, and the first `equals` that equal it.
  struct Bar {
    float weight;
    std::int32_t equals;
  };

  float logit(double exponent) const;  // that such a weight has, or a little less
  double rank_exponent(const LogitRow& row, std::int32_t top_k);
  double find_by_logit(const LogitRow& row, double exponent);
  void find_by_mass(const LogitRow& row, const Limits& limits, double total);
  Bar rank_bar(std::int32_t top_k);
  Bar mass_bar(double mass);
  Bar ratio_bar(double min_p) const;
  void cut(Bar bar);

  double greatest_ = 0;  // of the row
  double scale_ = 0;
  std::vector<float> maxima_;
  std::vector<float> coarse_;   // maxima of these
  std::vector<std::int32_t> indices_;  // of what is kept so far, ascending, and its weights
  std::vector<float> kept_;
  std::int32_t count_ = 0;
  float least_ = 0;  // none of them weighs less
  std::vector<float> order_;
};

}  // namespace specdec
