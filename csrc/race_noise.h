#pragma once

#include <cstdint>
#include <vector>

#include "noise.h"

namespace specdec {

// The random words of the coupled rule's races, one for each token at each position. The drafter,
// the target and the next round race at the same positions: words that one of them has made are
// kept for the others. What is returned never depends on what is kept.
class RaceNoise {
 public:
  // The words of ids 0 to count - 1 at position noise.position + offset, until the next call.
  const std::uint32_t* row(const RoundNoise& noise, std::uint32_t offset, std::int32_t count);

  // The words of ids[n] alone, for supports so small that a row would cost more.
  static void pick(const RoundNoise& noise, std::uint32_t offset, const std::int32_t* ids,
                   std::int32_t n, std::uint32_t* out);

 private:
  struct Row {
    std::uint64_t seed = 0;
    std::uint64_t position = 0;
    std::vector<std::uint32_t> words;  // of the ids from 0 on: as many as were asked for
  };
  std::vector<Row> rows_;  // a round's positions: seldom more than its drafts and one
};

}  // namespace specdec
