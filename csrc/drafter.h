#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "attached_decoder.h"
#include "chain_draw.h"
#include "decoder.h"
#include "draft_policy.h"
#include "noise.h"
#include "proposal.h"
#include "sampler.h"
#include "sequence.h"
#include "verify.h"

namespace specdec {

// Proposes tokens that may follow the sequence.
class Drafter {
 public:
  virtual ~Drafter() = default;

  // Makes ready for a new prompt, after rollback() to what it shares with the tokens before; may
  // stop early.
  virtual void start(const Sequence& sequence, const std::function<bool()>& stop) = 0;

  // Begins to append at most request.plan.depth positions, fewer (or none) where it knows no more.
  // Gives the step of its model that it waits for; none: that was all. The arguments stay as they
  // are until the last step was taken; by then the sampler is as it was.
  virtual std::optional<StepRequest> begin(const Sequence& sequence, const DraftRequest& request,
                                           Sampler& sampler, Proposal& proposal) {
    propose(sequence, request, sampler, proposal);
    return {};
  }

  // Goes on with the rows of the step that it waited for; as begin().
  virtual std::optional<StepRequest> take(const LogitRows&) { return {}; }

  // How sure it is, as a probability, of what it looked up for the sequence; 0: nothing, or nothing
  // beside what begin() gives anyway.
  virtual float lookup(const Sequence&) { return 0; }

  // Forgets every token from position `length` on.
  virtual void rollback(std::int32_t length) = 0;

  // Candidates that it can have for one position.
  virtual std::int32_t widest() const { return kMaxCandidates; }

  // Its model; null: there is none.
  virtual Decoder* decoder() const { return nullptr; }

  // Seconds spent in that, since construction.
  double run_seconds() const { return decoder() == nullptr ? 0 : decoder()->run_seconds(); }

 private:
  // begin(), for drafters that wait for no step.
  virtual void propose(const Sequence&, const DraftRequest&, Sampler&, Proposal&) {}
};

// A small model with its own KV cache.
class ModelDrafter final : public Drafter {
 public:
  explicit ModelDrafter(std::shared_ptr<Decoder> decoder) : decoder_(std::move(decoder)) {}

  void start(const Sequence& sequence, const std::function<bool()>& stop) override;
  std::optional<StepRequest> begin(const Sequence& sequence, const DraftRequest& request,
                                   Sampler& sampler, Proposal& proposal) override;
  std::optional<StepRequest> take(const LogitRows& rows) override { return draw_.take(rows); }
  void rollback(std::int32_t length) override { decoder_->cache().truncate(length); }
  Decoder* decoder() const override { return decoder_.get(); }

 private:
  // Whether its model can take the whole sequence.
  bool takes(const Sequence& sequence) const;

  std::shared_ptr<Decoder> decoder_;
  ChainDraw draw_;
};

// A model that reads its target's hidden state and K/V: it has no past to fill or to take back.
class AttachedDrafter final : public Drafter {
 public:
  // Of an AttachedDecoder, or another Decoder that is a Follower.
  template <class FollowingDecoder>
  explicit AttachedDrafter(std::shared_ptr<FollowingDecoder> decoder)
      : follower_(*decoder), decoder_(std::move(decoder)) {}

  void start(const Sequence&, const std::function<bool()>&) override {}
  // None where the hidden state before the last token is not at hand: at the first token of all,
  // or after a return to an earlier prompt. The target's step then gives the next one.
  std::optional<StepRequest> begin(const Sequence& sequence, const DraftRequest& request,
                                   Sampler& sampler, Proposal& proposal) override;
  std::optional<StepRequest> take(const LogitRows& rows) override { return draw_.take(rows); }
  void rollback(std::int32_t) override {}
  Decoder* decoder() const override { return decoder_.get(); }

 private:
  Follower& follower_;
  std::shared_ptr<Decoder> decoder_;
  ChainDraw draw_;
};

// Looks the last tokens up in the text so far and proposes what followed them the last time.
// Saxena, "Prompt Lookup Decoding" (2023).
class NgramDrafter final : public Drafter {
 public:
  NgramDrafter(std::int32_t min_match, std::int32_t max_match);

  void start(const Sequence& sequence, const std::function<bool()>& stop) override;
  void propose(const Sequence& sequence, const DraftRequest& request, Sampler& sampler,
               Proposal& proposal) override;
  void rollback(std::int32_t) override {}  // indexes committed tokens alone
  std::int32_t widest() const override { return 1; }

  // Where the text goes on as it did before, and how sure that is.
  struct Match {
    std::int32_t follower;  // position of the token that followed then
    float sure;             // 0: there is none
  };
  Match find(const Sequence& sequence);

 private:
  void index(const std::vector<std::int32_t>& tokens);

  std::int32_t min_match_;
  std::int32_t max_match_;
  std::int32_t indexed_ = 0;  // tokens whose n-grams are in the index
  // [n - min_match]: hash of an n-gram -> where the token after it stands, latest wins.
  std::vector<std::unordered_map<std::uint64_t, std::int32_t>> followers_;
};

// What was looked up in the text where the policy wants that, which costs no step; else a model's
// drafts.
class MixedDrafter final : public Drafter {
 public:
  MixedDrafter(std::shared_ptr<Drafter> model, std::int32_t min_match, std::int32_t max_match)
      : model_(std::move(model)), ngram_(min_match, max_match) {}

  void start(const Sequence& sequence, const std::function<bool()>& stop) override;
  std::optional<StepRequest> begin(const Sequence& sequence, const DraftRequest& request,
                                   Sampler& sampler, Proposal& proposal) override;
  std::optional<StepRequest> take(const LogitRows& rows) override { return model_->take(rows); }
  float lookup(const Sequence& sequence) override { return ngram_.find(sequence).sure; }
  void rollback(std::int32_t length) override { model_->rollback(length); }
  std::int32_t widest() const override { return model_->widest(); }
  Decoder* decoder() const override { return model_->decoder(); }

 private:
  std::shared_ptr<Drafter> model_;
  NgramDrafter ngram_;
};

}  // namespace specdec
