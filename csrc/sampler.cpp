#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "error.h"
#include "kernels.h"

namespace specdec {
namespace {

constexpr float kLog2E = 1.44269504f;

// Where token stands in the row, or -1.
std::int32_t index_in(const LogitRow& row, std::int32_t token) {
  if (row.ids == nullptr) return token < row.size ? token : -1;
  const std::int32_t* end = row.ids + row.size;
  const std::int32_t* found = std::lower_bound(row.ids, end, token);
  return found != end && *found == token ? static_cast<std::int32_t>(found - row.ids) : -1;
}

[[noreturn]] void throw_bad_logits() {
  throw Error(ErrorCode::model_run,
              "the model gave logits that are no finite numbers; its files may be damaged, or "
              "every token is banned by logit_bias");
}

}  // namespace

void Sampler::start(SamplingOptions options, std::int32_t vocabulary, const Sequence& sequence) {
  options_ = std::move(options);
  counts_.clear();
  seen_.clear();
  recent_.clear();
  if (!penalises()) return;
  counts_.resize(static_cast<std::size_t>(vocabulary));
  for (std::int32_t i = 0; i < sequence.prompt_length(); ++i) {
    const std::int32_t token = sequence.tokens()[static_cast<std::size_t>(i)];
    if (counts_[token].prompt++ == 0) seen_.push_back(token);
  }
}

bool Sampler::penalises() const {
  return options_.repetition_penalty != 1 || options_.presence_penalty != 0 ||
         options_.frequency_penalty != 0;
}

Wanted Sampler::wanted() const {
  const bool unaltered = options_.logit_bias.empty() && !penalises();
  return options_.greedy() && unaltered ? Wanted::best : Wanted::logits;
}

void Sampler::see(std::int32_t token) {
  if (counts_.empty()) return;
  Counts& counts = counts_[token];
  if (counts.prompt == 0 && counts.generated == 0) seen_.push_back(token);
  ++counts.generated;
  recent_.push_back(token);
}

void Sampler::unsee(std::int32_t count) {
  if (counts_.empty()) return;
  for (; count > 0; --count) {
    const std::int32_t token = recent_.back();
    recent_.pop_back();
    Counts& counts = counts_[token];
    // A token seen for the first time is the latest in seen_: see() and unsee() nest.
    if (--counts.generated == 0 && counts.prompt == 0) seen_.pop_back();
  }
}

void Sampler::adjust(const LogitRow& row) {
  for (const auto& [token, bias] : options_.logit_bias) {
    const std::int32_t index = index_in(row, token);
    if (index >= 0) row.logits[index] += static_cast<float>(bias);
  }
  if (counts_.empty()) return;
  const auto repetition = static_cast<float>(options_.repetition_penalty);
  for (const std::int32_t token : seen_) {
    const std::int32_t index = index_in(row, token);
    if (index < 0) continue;
    float& logit = row.logits[index];
    logit = logit > 0 ? logit / repetition : logit * repetition;
    const std::int32_t generated = counts_[token].generated;
    if (generated > 0) {
      logit -= static_cast<float>(options_.presence_penalty +
                                  options_.frequency_penalty * generated);
    }
  }
}

std::int32_t Sampler::argmax(const LogitRow& row) {
  std::int32_t index = row.best;
  if (row.logits != nullptr) {
    adjust(row);
    index = kernels::argmax(row.logits, row.size);
    if (!std::isfinite(row.logits[index])) throw_bad_logits();
  }
  if (index < 0) throw_bad_logits();
  return row.ids == nullptr ? index : row.ids[index];
}

std::int32_t Sampler::best(const LogitRow& row, std::int32_t n, std::int32_t* tokens) {
  if (n == 1 || row.logits == nullptr) {
    tokens[0] = argmax(row);
    return 1;
  }
  adjust(row);
  kernels::Ranked ranked[kMaxCandidates];
  std::fill_n(ranked, n, kernels::Ranked{-std::numeric_limits<float>::infinity(), -1});
  kernels::top(row.logits, row.size, 0, ranked, n);
  if (!std::isfinite(ranked[0].value)) throw_bad_logits();
  std::int32_t count = 0;
  for (; count < n && ranked[count].index >= 0; ++count) {
    const std::int32_t index = ranked[count].index;
    tokens[count] = row.ids == nullptr ? index : row.ids[index];
  }
  return count;
}

void Sampler::confidences(const LogitRow& row, const std::int32_t* tokens, std::int32_t n,
                          float* probabilities) const {
  const float greatest = row.logits[index_in(row, tokens[0])];
  const double total = kernels::exp2_sum(row.logits, row.size, greatest, kLog2E);
  for (std::int32_t i = 0; i < n; ++i) {
    const float logit = row.logits[index_in(row, tokens[i])];
    probabilities[i] = static_cast<float>(std::exp(double{logit} - greatest) / total);
  }
}

void Sampler::distribution(const LogitRow& row, bool in_place, Distribution& out, bool race) {
  if (options_.greedy()) {
    out.hold_one(argmax(row));
    return;
  }
  adjust(row);
  // Bounded, as 0 * inf is no number: beyond that only the greatest logit counts anyway.
  const auto scale = static_cast<float>(std::min(1.0 / options_.temperature, 1e30)) * kLog2E;
  if (Truncation::cuts(limits(), row.size)) {
    if (!truncation_.keep(row, scale, limits(), out)) throw_bad_logits();
    return;
  }
  const float greatest = kernels::max(row.logits, row.size);
  if (race) {
    if (!std::isfinite(greatest)) throw_bad_logits();
    out.refer_logits(row.logits, row.size, row.ids, greatest, scale);
    return;
  }
  float* weights = in_place ? row.logits : out.storage(row.size);
  const double total = kernels::exp2_shifted(row.logits, row.size, greatest, scale, weights);
  if (!std::isfinite(total) || !(total > 0)) throw_bad_logits();
  out.refer(weights, row.size, row.ids, total);
}

}  // namespace specdec
