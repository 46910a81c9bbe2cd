#include "engine.h"

#include <algorithm>
#include <string>
#include <utility>

#include "clock.h"
#include "error.h"

namespace specdec {
namespace {

std::int32_t common_prefix(const std::vector<std::int32_t>& a, const std::vector<std::int32_t>& b) {
  const auto end = std::min(a.size(), b.size());
  std::size_t i = 0;
  while (i < end && a[i] == b[i]) ++i;
  return static_cast<std::int32_t>(i);
}

}  // namespace

// The target's rows of one step as distributions, each made when it is first asked for. Tells the
// sampler of the drafts that a row is conditioned on, and takes that back at the end.
class Engine::LazyRows final : public TargetRows {
 public:
  LazyRows(Engine& engine, const LogitRows& logits) : engine_(engine), logits_(logits) {
    if (engine_.rows_.size() < static_cast<std::size_t>(logits.rows)) {
      engine_.rows_.resize(logits.rows);
    }
  }
  ~LazyRows() override { engine_.sampler_.unsee(std::max(made_ - 1, 0)); }

  const Distribution& row(std::int32_t i) override {
    for (; made_ <= i; ++made_) {
      if (made_ > 0) engine_.sampler_.see(engine_.proposal_.tokens()[made_ - 1]);
      engine_.sampler_.distribution(logits_.row(made_), true, engine_.rows_[made_]);
    }
    return engine_.rows_[i];
  }

 private:
  Engine& engine_;
  const LogitRows& logits_;
  std::int32_t made_ = 0;
};

Engine::Engine(std::shared_ptr<Decoder> target, std::shared_ptr<Drafter> drafter)
    : target_(std::move(target)),
      drafter_(std::move(drafter)),
      auto_length_(longest_draft()) {}

void Engine::start(std::vector<std::int32_t> prompt, StreamOptions options) {
  const std::int32_t vocabulary = target_->options().vocabulary;
  const auto length = static_cast<std::int32_t>(prompt.size());
  if (prompt.empty()) {
    throw Error(ErrorCode::invalid_input, "the prompt is empty; give at least one token");
  }
  if (length >= max_context()) {
    throw Error(ErrorCode::context_full,
                "the prompt has " + std::to_string(length) + " tokens and the context " +
                    std::to_string(max_context()) +
                    "; shorten the prompt or give the Generator a larger max_context");
  }
  for (std::int32_t i = 0; i < length; ++i) {
    if (prompt[i] < 0 || prompt[i] >= vocabulary) {
      throw Error(ErrorCode::invalid_input,
                  "prompt token " + std::to_string(i) + " is " + std::to_string(prompt[i]) +
                      ", outside the vocabulary of " + std::to_string(vocabulary));
    }
  }
  const std::int32_t first = target_->options().first_token;
  if (first >= 0 && prompt.front() != first) {
    throw Error(ErrorCode::invalid_input,
                "the prompt begins with token " + std::to_string(prompt.front()) +
                    "; a text of this model must begin with token " + std::to_string(first));
  }
  const std::int32_t shared = std::min(common_prefix(sequence_.tokens(), prompt), length - 1);
  target_->cache().truncate(shared);
  if (drafter_) drafter_->rollback(shared);
  sequence_.start(std::move(prompt));
  options_ = std::move(options);
  if (options_.sampling.greedy()) options_.rule = Rule::greedy;
  sampler_.start(options_.sampling, vocabulary, sequence_);
  totals_ = Totals{};
  totals_.prompt_tokens = length;
  totals_.prefilled_tokens = length - 1 - target_->cache().length();
  cancelled_ = false;
  running_ = true;
}

void Engine::prefill() {
  Stopwatch watch(totals_.prefill_seconds);
  const double before = model_seconds();
  const auto stop = [this] { return cancelled_.load(); };
  const std::int32_t known = target_->cache().length();
  try {
    target_->prefill(sequence_.tokens().data() + known, sequence_.length() - 1 - known, stop);
    if (drafter_) drafter_->start(sequence_, stop);
  } catch (...) {
    running_ = false;  // the caches hold a prefix of the prompt, which is no place for a round
    throw;
  }
  totals_.model_seconds += model_seconds() - before;
}

RoundResult Engine::round() {
  if (!running_) throw Error(ErrorCode::invalid_input, "no stream is running; start one first");
  if (cancelled_) {
    running_ = false;
    return {{}, 0, Finish::cancelled};
  }
  try {
    propose(choose_draft_length());
    return commit(verify());
  } catch (...) {
    rollback();
    throw;
  }
}

std::int32_t Engine::choose_draft_length() {
  if (!drafter_) return 0;
  std::int32_t k = draft_length_;
  if (k == kAuto) k = auto_length_.choose();
  // The round adds up to k + 1 tokens, which neither max_tokens nor the context may cut off.
  std::int32_t room = max_context() - sequence_.length() - 1;
  if (options_.max_tokens > 0) {
    room = std::min(room, options_.max_tokens - sequence_.generated() - 1);
  }
  return std::min({k, room, longest_draft()});
}

void Engine::propose(std::int32_t k) {
  proposal_.clear();
  round_draft_seconds_ = 0;
  if (k < 1) return;
  const double before = model_seconds();
  {
    Stopwatch watch(round_draft_seconds_);
    const RoundNoise noise{options_.sampling.seed, static_cast<std::uint64_t>(sequence_.length())};
    drafter_->propose(sequence_, {k, options_.rule, noise, race_}, sampler_, proposal_);
  }
  totals_.draft_seconds += round_draft_seconds_;
  totals_.model_seconds += model_seconds() - before;
}

Verdict Engine::verify() {
  // All that the target has not seen: the last token and the drafts (after an interrupted prefill
  // this would be more, but then no round is run).
  const std::int32_t known = target_->cache().length();
  const auto& tokens = sequence_.tokens();
  step_tokens_.assign(tokens.begin() + known, tokens.end());
  step_tokens_.insert(step_tokens_.end(), proposal_.tokens().begin(), proposal_.tokens().end());
  const double before = model_seconds();
  round_verify_seconds_ = 0;
  LogitRows logits{};
  {
    Stopwatch watch(round_verify_seconds_);
    logits = target_->forward(step_tokens_.data(),
                              static_cast<std::int32_t>(step_tokens_.size()),
                              proposal_.size() + 1, sampler_.wanted());
  }
  totals_.verify_seconds += round_verify_seconds_;
  totals_.model_seconds += model_seconds() - before;
  Stopwatch watch(totals_.accept_seconds);
  LazyRows rows(*this, logits);
  const RoundNoise noise{options_.sampling.seed, static_cast<std::uint64_t>(sequence_.length())};
  return specdec::verify(options_.rule, rows, proposal_.drafts(), noise, race_, scratch_);
}

RoundResult Engine::commit(const Verdict& verdict) {
  Stopwatch watch(totals_.accept_seconds);
  RoundResult result;
  result.tokens.assign(proposal_.tokens().begin(), proposal_.tokens().begin() + verdict.accepted);
  result.tokens.push_back(verdict.next);
  result.drafted = verdict.accepted;
  const auto& stops = options_.stop_ids;
  for (std::size_t i = 0; i < result.tokens.size(); ++i) {
    if (std::find(stops.begin(), stops.end(), result.tokens[i]) == stops.end()) continue;
    result.tokens.resize(i + 1);
    result.drafted = std::min(result.drafted, static_cast<std::int32_t>(i) + 1);
    result.finish = Finish::stop;
  }
  for (const std::int32_t token : result.tokens) {
    sequence_.append(token);
    sampler_.see(token);
  }
  // The step's columns are those of the last token before and of all new ones but the last.
  const std::int32_t length = sequence_.length();
  target_->cache().commit(length - 1 - target_->cache().length());
  if (drafter_) drafter_->rollback(length - 1);
  if (result.finish == Finish::none &&
      (length >= max_context() ||
       (options_.max_tokens > 0 && sequence_.generated() >= options_.max_tokens))) {
    result.finish = Finish::length;
  }
  running_ = result.finish == Finish::none;
  account(verdict, static_cast<std::int32_t>(result.tokens.size()));
  return result;
}

void Engine::account(const Verdict& verdict, std::int32_t committed) {
  const std::int32_t drafted = proposal_.size();
  ++totals_.rounds;
  totals_.tokens += committed;
  const auto positions = static_cast<std::size_t>(drafted);
  if (totals_.drafted_at.size() < positions) {
    totals_.drafted_at.resize(positions);
    totals_.accepted_at.resize(positions);
  }
  for (std::int32_t i = 0; i < drafted; ++i) {
    ++totals_.drafted_at[i];
    if (i < verdict.accepted) ++totals_.accepted_at[i];
  }
  if (drafter_) {
    auto_length_.observe(
        {drafted, verdict.accepted, round_draft_seconds_, round_verify_seconds_});
  }
}

void Engine::rollback() {
  running_ = false;
  target_->cache().truncate(sequence_.length() - 1);
  if (drafter_) drafter_->rollback(sequence_.length() - 1);
}

void Engine::set_draft_length(std::int32_t k) {
  const std::int32_t most = longest_draft();
  if (k != kAuto && (k < 1 || k > most)) {
    throw Error(ErrorCode::invalid_input,
                "draft_length is " + std::to_string(k) + "; it must be 1 to " +
                    std::to_string(most) + " or \"auto\": this target checks at most " +
                    std::to_string(most) + " drafts in a step");
  }
  draft_length_ = k;
}

std::int32_t Engine::longest_draft() const {
  const DecoderOptions& o = target_->options();
  return std::min({kMaxDraftLength, o.max_logit_rows - 1, o.max_width - 1});
}

double Engine::model_seconds() const {
  return target_->run_seconds() + (drafter_ ? drafter_->run_seconds() : 0);
}

}  // namespace specdec
