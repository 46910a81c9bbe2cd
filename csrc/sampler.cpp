#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
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

// Equal weights in the order of their ids.
bool heavier(const Distribution::Entry& a, const Distribution::Entry& b) {
  return a.weight != b.weight ? a.weight > b.weight : a.id < b.id;
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
  const float greatest = kernels::max(row.logits, row.size);
  // Bounded, as 0 * inf is no number: beyond that only the greatest logit counts anyway.
  const auto scale = static_cast<float>(std::min(1.0 / options_.temperature, 1e30)) * kLog2E;
  if (race && !truncates(row.size)) {
    if (!std::isfinite(greatest)) throw_bad_logits();
    out.refer_logits(row.logits, row.size, row.ids, greatest, scale);
    return;
  }
  float* weights = in_place ? row.logits : out.storage(row.size);
  const double total = kernels::exp2_shifted(row.logits, row.size, greatest, scale, weights);
  if (!std::isfinite(total) || !(total > 0)) throw_bad_logits();
  out.refer(weights, row.size, row.ids, total);
  if (truncates(row.size)) truncate(out);
}

bool Sampler::truncates(std::int32_t size) const {
  return (options_.top_k > 0 && options_.top_k < size) || options_.top_p < 1 || options_.min_p > 0;
}

double Sampler::rank_bar(const Distribution& row) {
  // Each block's greatest is one weight: the top_k greatest of them are top_k weights at least as
  // great as the last of them.
  constexpr std::int32_t kBlock = 64;
  maxima_.clear();
  for (std::int32_t begin = 0; begin < row.size(); begin += kBlock) {
    const std::int32_t count = std::min(kBlock, row.size() - begin);
    maxima_.push_back(kernels::max(row.weights() + begin, count));
  }
  if (maxima_.size() < static_cast<std::size_t>(options_.top_k)) return 0;
  const auto last = maxima_.begin() + (options_.top_k - 1);
  std::nth_element(maxima_.begin(), last, maxima_.end(), std::greater<>());
  return *last;
}

double Sampler::mass_bar(const Distribution& row) {
  // All tokens below this together weigh less than what the nucleus leaves out.
  const double surely_cut = 0.99 * (1 - options_.top_p) * row.total() / row.size();
  // Mostly a far higher bar has the nucleus above it; a little more than its mass, for rounding.
  const double nucleus = std::min(options_.top_p + 1e-5, 1.0) * row.total();
  for (double bar = 0.1; bar > surely_cut; bar *= 0.25) {
    const auto threshold = static_cast<float>(bar);
    if (kernels::sum_at_least(row.weights(), row.size(), threshold) > nucleus) return bar;
  }
  return surely_cut;
}

Distribution::Entry Sampler::last_of_nucleus(double mass) {
  // A search by halves, as sorting all of them would take far longer: those before `first` weigh
  // less than the nucleus, those before `last` at least as much (or are all there are).
  order_ = entries_;
  auto first = order_.begin();
  auto last = order_.end();
  while (last - first > 1) {
    const auto middle = first + (last - first) / 2;
    std::nth_element(first, middle, last, heavier);
    double heavy = 0;
    for (auto entry = first; entry != middle; ++entry) heavy += entry->weight;
    if (heavy >= mass) {
      last = middle;
    } else {
      mass -= heavy;
      first = middle;
    }
  }
  return *first;
}

void Sampler::cut_after(const Distribution::Entry& least) {
  const auto lighter = [&](const Distribution::Entry& entry) { return heavier(least, entry); };
  entries_.erase(std::remove_if(entries_.begin(), entries_.end(), lighter), entries_.end());
}

void Sampler::truncate(Distribution& out) {
  const bool by_rank = options_.top_k > 0 && options_.top_k < out.size();
  const bool by_mass = options_.top_p < 1;
  const bool by_ratio = options_.min_p > 0;

  // The greatest weight is 1. Tokens lighter than `bar` are cut for certain; few others remain.
  double bar = by_rank ? rank_bar(out) : options_.min_p;
  if (by_mass && !by_rank) {
    bar = std::max(bar, mass_bar(out));
  }
  if (candidates_.size() < static_cast<std::size_t>(out.size())) candidates_.resize(out.size());
  const std::int32_t count = kernels::at_least(out.weights(), out.size(),
                                               static_cast<float>(bar), candidates_.data());
  entries_.clear();
  for (std::int32_t i = 0; i < count; ++i) {
    const std::int32_t index = candidates_[i];
    entries_.push_back({out.id_at(index), out.weights()[index]});
  }
  double total = out.total();
  if (by_rank && options_.top_k < count) {
    order_ = entries_;
    const auto last = order_.begin() + (options_.top_k - 1);
    std::nth_element(order_.begin(), last, order_.end(), heavier);
    cut_after(*last);
  }
  if (by_rank) {
    total = 0;
    for (const Distribution::Entry& entry : entries_) total += entry.weight;
  }
  if (by_mass) cut_after(last_of_nucleus(options_.top_p * total));
  if (by_rank && by_ratio) {
    const auto end = std::remove_if(entries_.begin(), entries_.end(), [&](const auto& entry) {
      return entry.weight < options_.min_p && entry.weight < 1;
    });
    entries_.erase(end, entries_.end());
  }
  out.hold(entries_);
}

}  // namespace specdec
