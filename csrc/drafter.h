#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "attached_decoder.h"
#include "decoder.h"
#include "draft_policy.h"
#include "noise.h"
#include "proposal.h"
#include "sampler.h"
#include "sequence.h"
#include "verify.h"

namespace specdec {

// What a drafter needs to know of the round it drafts for.
struct DraftRequest {
  DraftPlan plan;
  std::int32_t nodes;   // drafts that may be checked
  DraftPolicy& policy;  // to be asked after each step, and obeyed
  Rule rule;
  RoundNoise noise;
  RaceNoise& race;
};

// Proposes tokens that may follow the sequence.
class Drafter {
 public:
  virtual ~Drafter() = default;

  // Makes ready for a new prompt, after rollback() to what it shares with the tokens before; may
  // stop early.
  virtual void start(const Sequence& sequence, const std::function<bool()>& stop) = 0;

  // Appends at most request.plan.depth positions, fewer (or none) where it knows no more. Leaves
  // the sampler as it found it.
  virtual void propose(const Sequence& sequence, const DraftRequest& request, Sampler& sampler,
                       Proposal& proposal) = 0;

  // Forgets every token from position `length` on.
  virtual void rollback(std::int32_t length) = 0;

  // Candidates that it can have for one position.
  virtual std::int32_t widest() const { return kMaxCandidates; }

  virtual double run_seconds() const { return 0; }  // spent in a model, since construction
};

// A small model with its own KV cache.
class ModelDrafter final : public Drafter {
 public:
  explicit ModelDrafter(std::shared_ptr<Decoder> decoder) : decoder_(std::move(decoder)) {}

  void start(const Sequence& sequence, const std::function<bool()>& stop) override;
  void propose(const Sequence& sequence, const DraftRequest& request, Sampler& sampler,
               Proposal& proposal) override;
  void rollback(std::int32_t length) override { decoder_->cache().truncate(length); }
  double run_seconds() const override { return decoder_->run_seconds(); }

 private:
  // Whether its model can take the whole sequence.
  bool takes(const Sequence& sequence) const;

  std::shared_ptr<Decoder> decoder_;
};

// A model that reads its target's hidden state and K/V: it has no past to fill or to take back.
class AttachedDrafter final : public Drafter {
 public:
  explicit AttachedDrafter(std::shared_ptr<AttachedDecoder> decoder)
      : decoder_(std::move(decoder)) {}

  void start(const Sequence&, const std::function<bool()>&) override {}
  // None where the hidden state before the last token is not at hand: at the first token of all,
  // or after a return to an earlier prompt. The target's step then gives the next one.
  void propose(const Sequence& sequence, const DraftRequest& request, Sampler& sampler,
               Proposal& proposal) override;
  void rollback(std::int32_t) override {}
  double run_seconds() const override { return decoder_->run_seconds(); }

 private:
  std::shared_ptr<AttachedDecoder> decoder_;
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

 private:
  void index(const std::vector<std::int32_t>& tokens);

  std::int32_t min_match_;
  std::int32_t max_match_;
  std::int32_t indexed_ = 0;  // tokens whose n-grams are in the index
  // [n - min_match]: hash of an n-gram -> where the token after it stands, latest wins.
  std::vector<std::unordered_map<std::uint64_t, std::int32_t>> followers_;
};

}  // namespace specdec
