#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace specdec {

// How likely the target is to choose a candidate, from what it chose so far: by the drafter's own
// probability of the candidate (in bins, each a mean that forgets) and by depth. A drafter that is
// too sure of itself, or not sure enough, is corrected as a whole first and bin by bin then.
//
// A confidence is the drafter's probability of a candidate, kUnsure where it is not known.
class AcceptanceModel {
 public:
  static constexpr float kUnsure = -1;

  explicit AcceptanceModel(std::int32_t max_depth);

  // Of the chain's candidate at this depth, given that those before it are accepted.
  double chain(std::int32_t depth, float confidence) const;
  // Of another candidate of a position: that the target chooses just this one.
  double sibling(float confidence) const;
  // Of the chain's candidate at this depth before it is known, behind one of that confidence.
  double next(std::int32_t depth, float before) const;

  // What the chain's draft at this depth brings where the chain is verified as a block, over what it
  // brings where drafts are checked one by one, which all the others are about.
  double block(std::int32_t depth) const { return mean_block_[depth]; }

  // `accepted`: 1 or 0, or the chance of it where that is known of the very draft. It counts for
  // `weight` observations, the chance that those before it are accepted.
  void add_chain(std::int32_t depth, float confidence, double accepted, double weight = 1);
  void add_sibling(float confidence, bool chosen);
  void add_next(std::int32_t depth, float before, double accepted, double weight = 1);
  // What the chain's draft at this depth was expected to bring in a block, and by itself.
  void add_block(std::int32_t depth, double in_block, double by_itself);

  // A round drafted to this depth. What was seen of greater ones fades, back to what the lesser
  // ones suggest: else a bad start there would never be found out.
  void end_round(std::int32_t depth);

  // What was seen so far counts for no more than `observations` from here on.
  void fade(double observations);

 private:
  static constexpr std::int32_t kBins = 10;

  // Decaying sums of what happened and of what was to be expected.
  struct Count {
    double happened = 0;
    double expected = 0;  // or the number of observations
    void add(double what, double instead_of);  // weighted alike
    void fade(double most);
    void age(double keep);
    // happened over expected, with `weight` of both at `prior` added.
    double ratio(double prior, double weight) const;
  };

  static std::int32_t bin(float confidence);  // kBins: unsure
  double prior(float confidence) const;
  void refresh();

  Count drafter_;                            // accepted, over the drafter's own confidence
  std::array<Count, kBins + 1> chain_;       // [bin]
  std::vector<Count> depth_;                 // [depth]: accepted, over what chain_ expected
  Count other_;                              // as drafter_, of siblings
  std::array<Count, kBins + 1> sibling_;     // [bin]
  std::vector<Count> next_;                  // [depth]
  std::vector<double> mean_next_;            // [depth], what is made of next_
  std::array<Count, kBins + 1> next_after_;  // [bin of the draft before], over mean_next_
  std::vector<Count> block_;                 // [depth]: in a block, over by itself
  std::vector<double> mean_block_;           // [depth], what is made of block_
};

}  // namespace specdec
