#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "decoder.h"
#include "auto_policy.h"
#include "drafter.h"
#include "sampler.h"
#include "sequence.h"
#include "verify.h"

namespace specdec {

struct StreamOptions {
  SamplingOptions sampling;
  Rule rule = Rule::block;             // at temperature 0 the rule is always greedy
  std::vector<std::int32_t> stop_ids;  // tokens that end the text
  std::int32_t max_tokens = 0;         // of the text; 0: as many as fit into the context
};

enum class Finish { none, stop, length, cancelled };

// What one round committed.
struct RoundResult {
  std::vector<std::int32_t> tokens;
  std::int32_t drafted = 0;   // of tokens, at the front: came from the drafter
  Finish finish = Finish::none;
};

// Sums over the rounds of one stream. Seconds add up to the time inside the engine.
struct Totals {
  std::int64_t rounds = 0;
  std::int64_t tokens = 0;           // committed
  std::int64_t checked = 0;          // drafts that the target checked, siblings included
  std::int64_t prompt_tokens = 0;
  // Of the prompt: neither in the caches already, nor its last token, which the first round runs.
  std::int64_t prefilled_tokens = 0;
  std::vector<std::int64_t> drafted_at;   // [i]: rounds with drafts for at least i + 1 positions
  std::vector<std::int64_t> accepted_at;  // [i]: of those, rounds that accepted at least i + 1
  // Of the positions drafted for and accepted, those of rounds whose drafts were looked up.
  std::int64_t looked_up = 0;
  std::int64_t looked_up_accepted = 0;
  double prefill_seconds = 0;
  double draft_seconds = 0;
  double verify_seconds = 0;  // the target's steps
  double accept_seconds = 0;  // distributions, acceptance, commit
  double model_seconds = 0;   // inside the two models' run calls, part of the above
};

// Speculative decoding of one sequence: propose, verify, commit, round by round.
//
// One thread at a time may start, prefill and run rounds; set_draft_length(), set_draft_width() and
// cancel() may be called from any thread at any time.
class Engine {
 public:
  static constexpr std::int32_t kMaxDraftLength = 32;

  // drafter may be null: plain decoding. Both models' caches belong to the engine from here on.
  Engine(std::shared_ptr<Decoder> target, std::shared_ptr<Drafter> drafter);

  // Begins a stream. What the prompt shares with the tokens before stays in the caches.
  void start(std::vector<std::int32_t> prompt, StreamOptions options);

  // Fills the caches with all but the prompt's last token.
  void prefill();

  // Propose, verify, commit. On an exception the caches are back at the committed prefix.
  RoundResult round();

  // The same in pieces, for whoever runs the steps of several sequences together. After
  // begin_round() there is a step() that the round waits for, the drafter's or the target's; it is
  // run, take() is given its rows and the seconds that it cost, and then there is the next one, or
  // none: end_round() tells what was committed. Where begin_round() or take() throws, or a step
  // cannot be run and the round is abandoned, the caches are back at the committed prefix.
  void begin_round();
  const std::optional<StepRequest>& step() const { return step_; }
  void take(const LogitRows& rows, double seconds);
  RoundResult end_round();
  void abandon_round() { rollback(); }

  // prefill() in pieces. The target's next step, of at most `most` tokens, none where it has all
  // but the prompt's last token; it is run and its n tokens are taken. Then one step of the
  // drafter's after the other, until prefilled() says that rounds may begin.
  std::optional<StepRequest> prefill_step(std::int32_t most);
  void take_prefill(std::int32_t n, double seconds);
  void prefill_drafter();

  bool running() const { return running_; }
  bool prefilled() const { return prefilled_; }
  bool cancelled() const { return cancelled_; }
  bool drafting() const { return drafting_; }  // whether step() is the drafter's

  void set_draft_length(std::int32_t k);  // 1..kMaxDraftLength or kAuto
  std::int32_t draft_length() const { return draft_length_; }

  // Candidates for each position, 1..kMaxCandidates; more than 1 only on a target that takes trees.
  // kAuto: with a draft length of kAuto as many as are worth it, else 1.
  void set_draft_width(std::int32_t width);
  std::int32_t draft_width() const { return draft_width_; }

  // For rounds that share their steps: AutoPolicy::set_shared().
  void share_costs(const std::optional<SharedCosts>& costs) { auto_policy_.set_shared(costs); }
  // Tokens that the next round gains by drafting, going by those costs; a draft length that is set
  // is worth it. None where it drafts in no case.
  std::optional<double> gain_of_drafting();
  Decoder& target() { return *target_; }
  Decoder* drafter_model() { return drafter_ ? drafter_->decoder() : nullptr; }

  void cancel() { cancelled_ = true; }

  const Sequence& sequence() const { return sequence_; }
  const Totals& totals() const { return totals_; }
  std::int32_t max_context() const { return target_->cache().capacity(); }
  std::int32_t longest_draft() const;  // that fits into one step of the target, and all its drafts
  std::int32_t widest_draft() const;   // candidates for one position
  bool target_takes_trees() const { return target_->takes_trees(); }

 private:
  class LazyRows;

  DraftLimits limits();
  void propose();
  void end_drafting();
  void ask_target();
  Verdict verify(const LogitRows& logits, double run_seconds);
  Rule rule() const;
  RoundResult commit(const Verdict& verdict);
  void keep_columns(const Verdict& verdict);
  void account(const Verdict& verdict, std::int32_t committed);
  RoundOutcome outcome(const Verdict& verdict) const;
  void rollback();
  template <class Work>
  void or_rollback(const Work& work);
  double model_seconds() const;

  std::shared_ptr<Decoder> target_;
  std::shared_ptr<Drafter> drafter_;
  Sequence sequence_;
  Sampler sampler_;
  StreamOptions options_;
  Proposal proposal_;
  AutoPolicy auto_policy_;
  FixedDraft fixed_draft_{1, 1};
  DraftPolicy* policy_ = nullptr;  // of the round; null where nothing could be drafted
  DraftPlan plan_{};               // of the round
  Totals totals_;
  bool running_ = false;
  bool prefilled_ = false;
  bool drafting_ = false;
  std::optional<StepRequest> step_;  // that the round waits for
  RoundResult result_;               // of the round
  std::vector<Distribution> rows_;  // kept between rounds for their storage
  RaceNoise race_;
  std::vector<float> scratch_;
  Odds odds_;
  std::vector<std::int32_t> step_tokens_;
  std::vector<std::int32_t> step_parents_;
  double round_draft_seconds_ = 0;
  double round_target_seconds_ = 0;
  double model_seconds_before_ = 0;  // the round
  std::atomic<std::int32_t> draft_length_{kAuto};
  std::atomic<std::int32_t> draft_width_{kAuto};
  std::atomic<bool> cancelled_{false};
};

}  // namespace specdec
