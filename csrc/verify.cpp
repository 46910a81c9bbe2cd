#include "verify.h"

#include <algorithm>

namespace specdec {

Verdict verify_greedy(TargetRows& p, const Drafts& drafts) {
  std::int32_t accepted = 0;
  while (true) {
    const std::int32_t next = p.row(accepted).argmax();
    if (accepted == drafts.k || next != drafts.tokens[accepted]) return {accepted, next};
    ++accepted;
  }
}

Verdict verify_token(TargetRows& p, const Drafts& drafts, const RoundNoise& noise,
                     std::vector<float>& scratch) {
  for (std::int32_t i = 0; i < drafts.k; ++i) {
    const double u = noise.uniform(Purpose::accept, static_cast<std::uint32_t>(i));
    const double target = p.row(i).probability(drafts.tokens[i]);
    const double draft = drafts.q[i].probability(drafts.tokens[i]);
    if (u * draft < target) continue;
    const double v = noise.uniform(Purpose::next, static_cast<std::uint32_t>(i));
    return {i, sample_excess(1.0, p.row(i), drafts.q[i], v, scratch)};
  }
  const double v = noise.uniform(Purpose::next, static_cast<std::uint32_t>(drafts.k));
  return {drafts.k, p.row(drafts.k).sample(v)};
}

Verdict verify_block(TargetRows& p, const Drafts& drafts, const RoundNoise& noise,
                     std::vector<float>& scratch) {
  std::int32_t accepted = 0;
  double accepted_mass = 1;  // the joint ratio at the accepted prefix
  double mass = 1;           // the joint ratio so far, capped at 1 at every step
  for (std::int32_t i = 1; i <= drafts.k; ++i) {
    const std::int32_t token = drafts.tokens[i - 1];
    const double draft = drafts.q[i - 1].probability(token);
    const double target = p.row(i - 1).probability(token);
    mass = draft > 0 ? std::min(mass * target / draft, 1.0) : 0.0;
    if (mass == 0) break;  // no longer prefix can pass
    double pass = mass;
    if (i < drafts.k) {
      const double excess = excess_mass(mass, p.row(i), drafts.q[i]);
      const double rest = excess + 1.0 - mass;
      // 0/0: target and drafter agree from here, and the next prefix passes for certain.
      pass = rest > 0 ? excess / rest : 1.0;
    }
    if (noise.uniform(Purpose::accept, static_cast<std::uint32_t>(i - 1)) < pass) {
      accepted = i;
      accepted_mass = mass;
    }
  }
  const double v = noise.uniform(Purpose::next, static_cast<std::uint32_t>(accepted));
  const Distribution& row = p.row(accepted);
  if (accepted == drafts.k) return {accepted, row.sample(v)};
  return {accepted, sample_excess(accepted_mass, row, drafts.q[accepted], v, scratch)};
}

Verdict verify_coupled(TargetRows& p, const Drafts& drafts, const RoundNoise& noise,
                       RaceNoise& race) {
  std::int32_t accepted = 0;
  while (true) {
    const std::int32_t next =
        p.row(accepted).race(noise, static_cast<std::uint32_t>(accepted), race);
    if (accepted == drafts.k || next != drafts.tokens[accepted]) return {accepted, next};
    ++accepted;
  }
}

Verdict verify(Rule rule, TargetRows& p, const Drafts& drafts, const RoundNoise& noise,
               RaceNoise& race, std::vector<float>& scratch) {
  switch (rule) {
    case Rule::greedy: return verify_greedy(p, drafts);
    case Rule::token: return verify_token(p, drafts, noise, scratch);
    case Rule::block: return verify_block(p, drafts, noise, scratch);
    case Rule::coupled: return verify_coupled(p, drafts, noise, race);
  }
  return {0, p.row(0).argmax()};
}

}  // namespace specdec
