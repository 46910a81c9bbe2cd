#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "kv_cache.h"
#include "logits.h"

namespace specdec {

struct DecoderOptions {
  std::int32_t vocabulary = 0;  // ids that tokens are taken from
  std::int32_t head_size = 0;   // logits per row
  std::vector<std::int32_t> head_ids;  // id of each logit, ascending; empty: logit i is id i
  std::int32_t max_width = 0;          // widest step
  std::int32_t max_logit_rows = 0;
  std::int32_t least_logit_rows = 0;  // rows that a step computes even where nobody needs one
  std::int32_t first_token = -1;      // the token that every text must begin with; -1: any
};

class Decoder;

// A step that somebody waits for: the arguments of Decoder::forward(). What it points to stays as it
// is until the step was run.
struct StepRequest {
  Decoder* decoder;
  const std::int32_t* tokens;
  std::int32_t n;
  std::int32_t logit_rows;
  Wanted wanted = Wanted::logits;
  const std::int32_t* parents = nullptr;

  LogitRows run() const;
};

// One model with one KV cache: runs steps on buffers that it owns and a session is bound to.
class Decoder {
 public:
  // Runs the model on the buffers, for a step of `width` tokens; `head` says which logits are
  // wanted, in the terms of the class that calls it. The seam to the inference runtime: everything
  // else passes through the buffers.
  using Run = std::function<void(std::int32_t width, std::int32_t head)>;

  virtual ~Decoder() = default;

  // Runs tokens[n] at positions cache().length()...; gives the last `logit_rows` of their rows.
  // Commits nothing. Throws Error(context_full) without room.
  //
  // `parents`, for decoders that take trees: tokens[i] follows tokens[parents[i]], with parents[i]
  // < i, or, where that is -1, the last committed token. Null: each follows the one before.
  LogitRows forward(const std::int32_t* tokens, std::int32_t n, std::int32_t logit_rows,
                    Wanted wanted = Wanted::logits, const std::int32_t* parents = nullptr);

  // Whether one step may hold several tokens for one position.
  virtual bool takes_trees() const { return false; }

  // Of the last step, whose columns are not committed yet: all that was computed of its token
  // `from` takes the place of what was computed of token `to`. For decoders that take trees.
  virtual void move_row(std::int32_t from, std::int32_t to);

  // Runs and commits tokens[n], whose logits nobody needs, in steps of at most max_width; stops
  // early, between steps, when `stop` says so.
  void prefill(const std::int32_t* tokens, std::int32_t n, const std::function<bool()>& stop);

  virtual KvCache& cache() = 0;
  const DecoderOptions& options() const { return options_; }
  double run_seconds() const { return run_seconds_; }  // inside Run, since construction
  std::int64_t runs() const { return runs_; }

 protected:
  Decoder(DecoderOptions options, Run run);

  // forward(), with arguments that were checked: ids of the vocabulary, 1 <= n <= max_width,
  // 0 <= logit_rows <= n, and parents of this step, given only where trees are taken.
  virtual LogitRows step(const std::int32_t* tokens, std::int32_t n, std::int32_t logit_rows,
                         Wanted wanted, const std::int32_t* parents) = 0;

  // Checks the arguments of forward(); gives the tokens as ids that the model knows, until the next
  // call.
  const std::int32_t* admit(const std::int32_t* tokens, std::int32_t n, std::int32_t logit_rows,
                            const std::int32_t* parents);

  void run(std::int32_t width, std::int32_t head);

  // A run for this decoder that somebody else saw to.
  void count_run(double seconds) {
    run_seconds_ += seconds;
    ++runs_;
  }

  void check_parents(const std::int32_t* parents, std::int32_t n) const;

  // The error of a step that the decoder was not made for.
  [[noreturn]] static void refuse(std::int32_t n, std::int32_t logit_rows);

  const std::int32_t* head_ids() const {
    return options_.head_ids.empty() ? nullptr : options_.head_ids.data();
  }

 private:
  DecoderOptions options_;
  Run run_;
  std::vector<std::int32_t> known_ids_;  // [max_width]
  double run_seconds_ = 0;
  std::int64_t runs_ = 0;
};

}  // namespace specdec
