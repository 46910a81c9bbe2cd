#pragma once

#include <cstdint>

namespace specdec {

// Philox4x32-10, a counter-based generator: Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3" (SC 2011). No state, no order of draws: the same counter and key give the same words.
struct PhiloxWords {
  std::uint32_t word[4];
};

inline PhiloxWords philox(std::uint32_t c0, std::uint32_t c1, std::uint32_t c2, std::uint32_t c3,
                          std::uint64_t seed) {
  auto k0 = static_cast<std::uint32_t>(seed);
  auto k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53u} * c0;
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57u} * c2;
    const auto next0 = static_cast<std::uint32_t>(product1 >> 32) ^ c1 ^ k0;
    const auto next2 = static_cast<std::uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(product1);
    c3 = static_cast<std::uint32_t>(product0);
    c0 = next0;
    c2 = next2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace specdec
