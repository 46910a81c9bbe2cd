#include "verify.h"

#include <algorithm>

namespace specdec {

namespace {

// The draft after `accepted` ones that is the target's choice `next`: -1 for that of the chain, a
// sibling's number, or none.
constexpr std::int32_t kChain = -1;
constexpr std::int32_t kNone = -2;

std::int32_t find(const Drafts& drafts, std::int32_t accepted, std::int32_t next) {
  if (accepted == drafts.k) return kNone;
  if (drafts.tokens[accepted] == next) return kChain;
  for (std::int32_t s = drafts.first(accepted); s < drafts.first(accepted + 1); ++s) {
    if (drafts.siblings[s] == next) return s;
  }
  return kNone;
}

// Follows the drafts for as long as one of them is the target's choice of a row, given the row and
// the number of drafts before it.
template <class Choose>
Verdict follow(TargetRows& p, const Drafts& drafts, const Choose& choose) {
  std::int32_t accepted = 0;
  while (true) {
    const std::int32_t next = choose(p.row(accepted), accepted);
    const std::int32_t draft = find(drafts, accepted, next);
    if (draft == kNone) return {accepted, next};
    ++accepted;
    if (draft != kChain) return {accepted, choose(p.leaf(draft), accepted), draft};
  }
}

// The noise that decides on candidate `rank` of position i.
double accept_noise(const RoundNoise& noise, std::int32_t i, std::int32_t rank) {
  return noise.uniform(Purpose::accept, candidate_offset(i, rank));
}

double next_noise(const RoundNoise& noise, std::int32_t accepted) {
  return noise.uniform(Purpose::next, static_cast<std::uint32_t>(accepted));
}

// After the rejection of draft i: its siblings.
Verdict verify_siblings(TargetRows& p, const Drafts& drafts, std::int32_t i,
                        const RoundNoise& noise, std::vector<float>& scratch) {
  const Distribution& q = drafts.q[i];
  const Distribution& row = p.row(i);
  Distribution rest = excess_of(1.0, row, q, q.total(), scratch);
  std::int32_t tried[kMaxCandidates] = {drafts.tokens[i]};
  std::int32_t count = 1;
  for (std::int32_t s = drafts.first(i); s < drafts.first(i + 1) && rest.total() > 0; ++s) {
    const std::int32_t token = drafts.siblings[s];
    // All that was tried is rejected, so p has none of it left: only the total has to change.
    const double q_total = q.total_without(tried, count);
    const double draft = q.weight(token) / q_total;
    if (accept_noise(noise, i, count) * draft < rest.probability(token)) {
      return {i + 1, p.leaf(s).sample(next_noise(noise, i + 1)), s};
    }
    rest = excess_of(1.0, rest, q, q_total, scratch);
    tried[count++] = token;
  }
  const double v = next_noise(noise, i);
  return {i, rest.total() > 0 ? rest.sample(v) : row.sample(v)};
}

}  // namespace

Verdict verify_greedy(TargetRows& p, const Drafts& drafts) {
  return follow(p, drafts,
                [](const Distribution& row, std::int32_t) { return row.argmax(); });
}

Verdict verify_token(TargetRows& p, const Drafts& drafts, const RoundNoise& noise,
                     std::vector<float>& scratch) {
  for (std::int32_t i = 0; i < drafts.k; ++i) {
    const double target = p.row(i).probability(drafts.tokens[i]);
    const double draft = drafts.q[i].probability(drafts.tokens[i]);
    if (accept_noise(noise, i, 0) * draft < target) continue;
    return verify_siblings(p, drafts, i, noise, scratch);
  }
  return {drafts.k, p.row(drafts.k).sample(next_noise(noise, drafts.k))};
}

Verdict verify_block(TargetRows& p, const Drafts& drafts, const RoundNoise& noise,
                     std::vector<float>& scratch, Odds& odds) {
  std::int32_t accepted = 0;
  double accepted_mass = 1;  // the joint ratio at the accepted prefix
  double mass = 1;           // the joint ratio so far, capped at 1 at every step
  double alone = 1;          // the chance that drafts so far are accepted one by one
  double alone_so_far = 0;
  double block_so_far = 0;  // expected to be accepted of the drafts so far, with more behind them
  odds.token.resize(static_cast<std::size_t>(drafts.k));
  odds.block.resize(static_cast<std::size_t>(drafts.k));
  for (std::int32_t i = 1; i <= drafts.k; ++i) {
    const std::int32_t token = drafts.tokens[i - 1];
    const double draft = drafts.q[i - 1].probability(token);
    const double target = p.row(i - 1).probability(token);
    mass = draft > 0 ? std::min(mass * target / draft, 1.0) : 0.0;
    if (mass == 0) {  // no longer prefix can pass
      std::fill(odds.token.begin() + i - 1, odds.token.end(), alone_so_far);
      std::fill(odds.block.begin() + i - 1, odds.block.end(), block_so_far);
      break;
    }
    alone *= std::min(target / draft, 1.0);
    alone_so_far += alone;
    odds.token[i - 1] = alone_so_far;
    odds.block[i - 1] = mass * i + (1 - mass) * block_so_far;
    double pass = mass;
    if (i < drafts.k) {
      const double excess = excess_mass(mass, p.row(i), drafts.q[i]);
      const double rest = excess + 1.0 - mass;
      // 0/0: target and drafter agree from here, and the next prefix passes for certain.
      pass = rest > 0 ? excess / rest : 1.0;
    }
    block_so_far = pass * i + (1 - pass) * block_so_far;
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
  return follow(p, drafts, [&](const Distribution& row, std::int32_t accepted) {
    return row.race(noise, static_cast<std::uint32_t>(accepted), race);
  });
}

Verdict verify(Rule rule, TargetRows& p, const Drafts& drafts, const RoundNoise& noise,
               RaceNoise& race, std::vector<float>& scratch, Odds& odds) {
  switch (rule) {
    case Rule::greedy: return verify_greedy(p, drafts);
    case Rule::token: return verify_token(p, drafts, noise, scratch);
    case Rule::block: return verify_block(p, drafts, noise, scratch, odds);
    case Rule::coupled: return verify_coupled(p, drafts, noise, race);
  }
  return {0, p.row(0).argmax()};
}

}  // namespace specdec
