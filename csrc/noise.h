#pragma once

#include <cstdint>

#include "philox.h"

namespace specdec {

// What a random number is for. Different purposes never share a draw.
enum class Purpose : std::uint32_t { draft = 1, accept = 2, next = 3, race = 4 };

// Where the noise for candidate `rank` of a round's position i is addressed: the first candidates
// have the offsets that they have in rounds of one candidate for each position.
constexpr std::uint32_t candidate_offset(std::int32_t i, std::int32_t rank) {
  return static_cast<std::uint32_t>(rank) << 16 | static_cast<std::uint32_t>(i);
}

// All random numbers of one round, addressed and not drawn in order.
//
// Uniforms are keyed by (seed, position at which the round starts, offset within it, purpose).
// Keying them by the absolute position alone would be wrong for rules that look at every draft
// before they decide (block verification): what round r learned about position t would be used
// again when round r + 1 reaches t, and the text would no longer follow the target.
// The race of the coupled rule is keyed by the absolute position: that is its point.
struct RoundNoise {
  std::uint64_t seed = 0;
  std::uint64_t position = 0;  // tokens committed when the round starts

  // In [0, 1), 53 bits.
  double uniform(Purpose purpose, std::uint32_t offset) const {
    const PhiloxWords w = philox(offset, static_cast<std::uint32_t>(purpose),
                                 static_cast<std::uint32_t>(position),
                                 static_cast<std::uint32_t>(position >> 32), seed);
    const std::uint64_t bits = (std::uint64_t{w.word[0]} << 32) | w.word[1];
    return static_cast<double>(bits >> 11) * 0x1p-53;
  }
};

}  // namespace specdec
