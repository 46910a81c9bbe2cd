#include "race_noise.h"

#include "kernels.h"

namespace specdec {

const std::uint32_t* RaceNoise::row(const RoundNoise& noise, std::uint32_t offset,
                                    std::int32_t count) {
  const std::uint64_t position = noise.position + offset;
  Row* found = nullptr;
  Row* unused = nullptr;
  for (Row& row : rows_) {
    if (row.seed != noise.seed) {
      unused = &row;
    } else if (row.position == position) {
      found = &row;
    } else if (row.position - noise.position > offset) {  // most are before the round: wrapped
      unused = &row;
    }
  }
  if (found == nullptr) {
    found = unused != nullptr ? unused : &rows_.emplace_back();
    found->seed = noise.seed;
    found->position = position;
    found->words.clear();
  }
  std::vector<std::uint32_t>& words = found->words;
  const std::size_t made = words.size();
  const std::size_t wanted = (static_cast<std::size_t>(count) + 31) / 32 * 32;
  if (made < wanted) {
    words.resize(wanted);
    kernels::race_words(noise.seed, position, static_cast<std::int32_t>(made),
                        static_cast<std::int32_t>(wanted - made), words.data() + made);
  }
  return words.data();
}

// Id 32 * g + 8 * k + j has word k of counter 8 * g + j, as kernels::race_words makes them.
void RaceNoise::pick(const RoundNoise& noise, std::uint32_t offset, const std::int32_t* ids,
                     std::int32_t n, std::uint32_t* out) {
  const std::uint64_t position = noise.position + offset;
  for (std::int32_t i = 0; i < n; ++i) {
    const auto id = static_cast<std::uint32_t>(ids[i]);
    const PhiloxWords w =
        philox(id / 32 * 8 + id % 8, static_cast<std::uint32_t>(Purpose::race),
               static_cast<std::uint32_t>(position), static_cast<std::uint32_t>(position >> 32),
               noise.seed);
    out[i] = w.word[id / 8 % 4];
  }
}

}  // namespace specdec
