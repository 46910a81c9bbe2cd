#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "batch_decoders.h"
#include "engine.h"

namespace specdec {

// Rounds of several sequences at once: all drafts of a depth come from one step of the drafter's
// model, and all of them are checked in one step of the target's. Each sequence is an Engine's, which
// drafts, accepts and commits as it does alone; what is shared are the runs of BatchModels.
//
// One thread at a time; Engine::cancel() and the setters of draft lengths from any thread.
class Batch {
 public:
  // Tokens of prompts that a step may hold beside the sequences that are written on, all together.
  static constexpr std::int32_t kPrefillRows = 128;
  static constexpr std::int32_t kLeastPrefillRows = 16;

  // Whether an error is no failure of a step, but is to end all that is going on (such as Ctrl-C).
  using IsInterrupt = std::function<bool(const std::exception_ptr&)>;

  Batch(std::vector<std::shared_ptr<Engine>> engines, IsInterrupt is_interrupt);

  // What came of one engine in a round: nothing where no stream runs, or its prefill goes on. After
  // an error its caches are at the committed prefix, and its stream is over.
  struct Outcome {
    std::optional<RoundResult> result;
    std::exception_ptr error;
  };

  // One round of every engine that runs a stream, [engines]. A stream begins with Engine::start()
  // alone: its prefill goes into the steps of the others' rounds. A step that fails is run for each
  // sequence alone, so that only those are lost that fail by themselves.
  std::vector<Outcome> round();

 private:
  // A step that an engine waits for.
  struct Wait {
    std::size_t engine;
    StepRequest step;
    bool prefill;
  };

  std::optional<SharedCosts> costs(Engine& engine, std::int32_t sequences) const;
  void move_costs(const std::vector<std::size_t>& together);
  void begin();
  void draft();
  void check();
  void run(std::vector<Wait>& waits);
  void run_together(BatchModel& model, Wait* waits, std::size_t count);
  void run_alone(const Wait& wait);
  void take(const Wait& wait, const LogitRows& rows, double seconds);
  template <class Work>
  void guarded(std::size_t engine, const Work& work);
  void fail(std::size_t engine, std::exception_ptr error);

  std::vector<std::shared_ptr<Engine>> engines_;
  IsInterrupt is_interrupt_;
  std::vector<Outcome> outcomes_;
  std::vector<bool> in_round_;
  std::vector<Wait> waits_;
  Company company_;
  std::vector<StepPart> parts_;
};

}  // namespace specdec
