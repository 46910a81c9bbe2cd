#include "engine.h"

#include <algorithm>
#include <numeric>
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
  ~LazyRows() override { engine_.sampler_.unsee(seen_); }

  const Distribution& row(std::int32_t i) override {
    for (; made_ <= i; ++made_) {
      if (made_ > 0) see(engine_.proposal_.chain()[made_ - 1]);
      make(made_);
    }
    return engine_.rows_[i];
  }

  const Distribution& leaf(std::int32_t sibling) override {
    see(engine_.proposal_.sibling(sibling));
    return make(engine_.proposal_.depth() + 1 + sibling);
  }

 private:
  void see(std::int32_t token) {
    engine_.sampler_.see(token);
    ++seen_;
  }

  const Distribution& make(std::int32_t row) {
    engine_.sampler_.distribution(logits_.row(row), true, engine_.rows_[row],
                                  engine_.options_.rule == Rule::coupled);
    return engine_.rows_[row];
  }

  Engine& engine_;
  const LogitRows& logits_;
  std::int32_t made_ = 0;
  std::int32_t seen_ = 0;
};

Engine::Engine(std::shared_ptr<Decoder> target, std::shared_ptr<Drafter> drafter)
    : target_(std::move(target)),
      drafter_(std::move(drafter)),
      auto_policy_(longest_draft(), longest_draft() + 1) {}

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
  auto_policy_.start_stream();
  totals_ = Totals{};
  totals_.prompt_tokens = length;
  totals_.prefilled_tokens = length - 1 - target_->cache().length();
  cancelled_ = false;
  prefilled_ = false;
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
  prefilled_ = true;
}

std::optional<StepRequest> Engine::prefill_step(std::int32_t most) {
  const DecoderOptions& o = target_->options();
  const std::int32_t known = target_->cache().length();
  const std::int32_t n = std::min({sequence_.length() - 1 - known, most, o.max_width});
  if (n < 1) return {};
  const std::int32_t* const tokens = sequence_.tokens().data() + known;
  return StepRequest{target_.get(), tokens, n, o.least_logit_rows, Wanted::best};
}

void Engine::take_prefill(std::int32_t n, double seconds) {
  target_->cache().commit(n);
  totals_.prefill_seconds += seconds;
  totals_.model_seconds += seconds;
}

void Engine::prefill_drafter() {
  prefilled_ = true;
  if (!drafter_) return;
  Stopwatch watch(totals_.prefill_seconds);
  const double before = model_seconds();
  std::int32_t asked = 0;
  or_rollback([&] { drafter_->start(sequence_, [&asked] { return ++asked > 1; }); });
  totals_.model_seconds += model_seconds() - before;
  prefilled_ = asked < 2;  // it asks before each step
}

template <class Work>
void Engine::or_rollback(const Work& work) {
  try {
    work();
  } catch (...) {
    rollback();
    throw;
  }
}

RoundResult Engine::round() {
  begin_round();
  while (step_) {
    double seconds = 0;
    LogitRows rows{};
    try {
      Stopwatch watch(seconds);
      rows = step_->run();
    } catch (...) {
      abandon_round();
      throw;
    }
    take(rows, seconds);
  }
  return end_round();
}

void Engine::begin_round() {
  if (!running_) throw Error(ErrorCode::invalid_input, "no stream is running; start one first");
  result_ = RoundResult{};
  step_.reset();
  drafting_ = false;
  if (cancelled_) {
    running_ = false;
    result_.finish = Finish::cancelled;
    return;
  }
  model_seconds_before_ = model_seconds();
  or_rollback([this] { propose(); });
}

void Engine::take(const LogitRows& rows, double seconds) {
  or_rollback([&] {
    if (!drafting_) {
      result_ = commit(verify(rows, seconds));
      step_.reset();
      totals_.model_seconds += model_seconds() - model_seconds_before_;
      return;
    }
    round_draft_seconds_ += seconds;
    {
      Stopwatch watch(round_draft_seconds_);
      step_ = drafter_->take(rows);
    }
    if (!step_) end_drafting();
  });
}

RoundResult Engine::end_round() { return std::move(result_); }

DraftLimits Engine::limits() {
  // A step's columns must fit into the context, and of the round's tokens, one more than there are
  // positions, neither that nor max_tokens may cut one off.
  const std::int32_t room = max_context() - sequence_.length() - 1;
  const std::int32_t nodes = std::min(room, longest_draft());
  std::int32_t depth = nodes;
  if (options_.max_tokens > 0) {
    depth = std::min(depth, options_.max_tokens - sequence_.generated() - 1);
  }
  const float lookup = drafter_ && draft_length_ == kAuto ? drafter_->lookup(sequence_) : 0;
  return {depth, nodes, widest_draft(), options_.rule == Rule::block, lookup};
}

std::optional<double> Engine::gain_of_drafting() {
  if (!drafter_ || cancelled_) return {};
  const DraftLimits most = limits();
  const std::int32_t length = draft_length_;
  if (most.depth < 1 || length == 0) return {};
  if (length != kAuto) return 1;
  auto_policy_.set_width(draft_width_);
  return auto_policy_.gain(most);
}

void Engine::propose() {
  proposal_.clear();
  round_draft_seconds_ = 0;
  plan_ = {0, 1, 0};
  policy_ = nullptr;
  const DraftLimits most = limits();
  if (!drafter_ || most.depth < 1) return ask_target();
  const std::int32_t length = draft_length_;
  const std::int32_t width = draft_width_;
  if (length == kAuto) {
    auto_policy_.set_width(width);
    auto_policy_.move_behind(sequence_.length());
    policy_ = &auto_policy_;
  } else {
    fixed_draft_ = FixedDraft(length, width == kAuto ? 1 : width);
    policy_ = &fixed_draft_;
  }
  plan_ = policy_->begin(most);
  if (plan_.depth < 1) return ask_target();
  {
    Stopwatch watch(round_draft_seconds_);
    const RoundNoise noise{options_.sampling.seed, static_cast<std::uint64_t>(sequence_.length())};
    step_ = drafter_->begin(sequence_, {plan_, most.nodes, *policy_, options_.rule, noise, race_},
                            sampler_, proposal_);
  }
  drafting_ = step_.has_value();
  if (!drafting_) end_drafting();
}

void Engine::end_drafting() {
  drafting_ = false;
  totals_.draft_seconds += round_draft_seconds_;
  ask_target();
}

void Engine::ask_target() {
  // All that the target has not seen: the last token and the drafts (after an interrupted prefill
  // this would be more, but then no round is run).
  const std::int32_t known = target_->cache().length();
  const auto& tokens = sequence_.tokens();
  step_tokens_.assign(tokens.begin() + known, tokens.end());
  step_parents_.resize(step_tokens_.size());
  std::iota(step_parents_.begin(), step_parents_.end(), -1);
  proposal_.append_to(step_tokens_, step_parents_);
  const bool tree = proposal_.nodes() > proposal_.depth();
  step_ = StepRequest{target_.get(),
                      step_tokens_.data(),
                      static_cast<std::int32_t>(step_tokens_.size()),
                      proposal_.nodes() + 1,
                      sampler_.wanted(),
                      tree ? step_parents_.data() : nullptr};
}

Verdict Engine::verify(const LogitRows& logits, double run_seconds) {
  double accept_seconds = 0;
  Verdict verdict{};
  {
    Stopwatch watch(accept_seconds);
    LazyRows rows(*this, logits);
    const RoundNoise noise{options_.sampling.seed, static_cast<std::uint64_t>(sequence_.length())};
    verdict = specdec::verify(rule(), rows, proposal_.drafts(), noise, race_, scratch_, odds_);
  }
  totals_.verify_seconds += run_seconds;
  totals_.accept_seconds += accept_seconds;
  round_target_seconds_ = run_seconds + accept_seconds;
  return verdict;
}

Rule Engine::rule() const {
  // By the plan, not by what came of it: were a round with siblings behind one draft checked by
  // another rule than one without them behind its alternatives, neither rule's proof would hold.
  return options_.rule == Rule::block && plan_.width > 1 ? Rule::token : options_.rule;
}

RoundResult Engine::commit(const Verdict& verdict) {
  Stopwatch watch(totals_.accept_seconds);
  RoundResult result;
  const auto chain = proposal_.chain().begin();
  result.tokens.assign(chain, chain + verdict.accepted);
  if (verdict.sibling >= 0) result.tokens.back() = proposal_.sibling(verdict.sibling);
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
  keep_columns(verdict);
  const std::int32_t length = sequence_.length();
  if (result.finish == Finish::none &&
      (length >= max_context() ||
       (options_.max_tokens > 0 && sequence_.generated() >= options_.max_tokens))) {
    result.finish = Finish::length;
  }
  running_ = result.finish == Finish::none;
  account(verdict, static_cast<std::int32_t>(result.tokens.size()));
  return result;
}

void Engine::keep_columns(const Verdict& verdict) {
  // The step's columns are those of the last token before, of the chain and of the siblings: what
  // is kept are those of all committed tokens but the last.
  KvCache& cache = target_->cache();
  const std::int32_t length = sequence_.length();
  const std::int32_t kept = length - 1 - cache.length();
  const auto before = static_cast<std::int32_t>(step_tokens_.size()) - proposal_.nodes();
  const std::int32_t last_draft = before + verdict.accepted - 1;
  std::int32_t drafted = length - 1;  // tokens that the drafter may have seen
  if (verdict.sibling >= 0 && last_draft < kept) {
    drafted = cache.length() + last_draft;
    target_->move_row(before + proposal_.depth() + verdict.sibling, last_draft);
  }
  cache.commit(kept);
  if (drafter_) drafter_->rollback(drafted);
}

void Engine::account(const Verdict& verdict, std::int32_t committed) {
  ++totals_.rounds;
  totals_.tokens += committed;
  totals_.checked += proposal_.nodes();
  const auto positions = static_cast<std::size_t>(proposal_.depth());
  if (totals_.drafted_at.size() < positions) {
    totals_.drafted_at.resize(positions);
    totals_.accepted_at.resize(positions);
  }
  for (std::int32_t i = 0; i < proposal_.depth(); ++i) {
    ++totals_.drafted_at[i];
    if (i < verdict.accepted) ++totals_.accepted_at[i];
  }
  if (proposal_.depth() > 0 && (plan_.lookup || drafter_->decoder() == nullptr)) {
    totals_.looked_up += proposal_.depth();
    totals_.looked_up_accepted += verdict.accepted;
  }
  if (policy_ == &auto_policy_) auto_policy_.observe(outcome(verdict));
}

RoundOutcome Engine::outcome(const Verdict& verdict) const {
  RoundOutcome result;
  result.drafted = proposal_.depth();
  result.rows = static_cast<std::int32_t>(step_tokens_.size());
  result.accepted = verdict.accepted - (verdict.sibling >= 0 ? 1 : 0);
  result.draft_seconds = round_draft_seconds_;
  result.target_seconds = round_target_seconds_;
  result.all_compared = options_.rule == Rule::greedy || options_.rule == Rule::coupled;
  if (rule() == Rule::block && result.drafted > 0) {
    result.by_token = odds_.token.data();
    result.by_block = odds_.block.data();
  }
  if (result.accepted == proposal_.positions()) return result;
  const Candidates& candidates = proposal_.position(result.accepted);
  const bool sibling = verdict.sibling >= 0;
  if (!sibling && !result.all_compared) return result;
  const std::int32_t choice = sibling ? proposal_.sibling(verdict.sibling) : verdict.next;
  const auto* end = candidates.tokens + candidates.count;
  const auto* found = std::find(candidates.tokens, end, choice);
  result.chosen = found == end ? RoundOutcome::kNone
                               : static_cast<std::int32_t>(found - candidates.tokens);
  return result;
}

void Engine::rollback() {
  running_ = false;
  step_.reset();
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

void Engine::set_draft_width(std::int32_t width) {
  if (width != kAuto && (width < 1 || width > kMaxCandidates)) {
    throw Error(ErrorCode::invalid_input,
                "draft_width is " + std::to_string(width) + "; it must be 1 to " +
                    std::to_string(kMaxCandidates) + " or \"auto\"");
  }
  if (width > 1 && !target_->takes_trees()) {
    throw Error(ErrorCode::invalid_input,
                "draft_width is " + std::to_string(width) +
                    ", and this target checks one candidate for each position; it must be 1 or "
                    "\"auto\"");
  }
  draft_width_ = width;
}

std::int32_t Engine::widest_draft() const {
  return target_->takes_trees() && drafter_ ? drafter_->widest() : 1;
}

std::int32_t Engine::longest_draft() const {
  const DecoderOptions& o = target_->options();
  return std::min({kMaxDraftLength, o.max_logit_rows - 1, o.max_width - 1});
}

double Engine::model_seconds() const {
  return target_->run_seconds() + (drafter_ ? drafter_->run_seconds() : 0);
}

}  // namespace specdec
