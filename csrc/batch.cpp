#include "batch.h"

#include <algorithm>
#include <utility>

#include "clock.h"
#include "error.h"

namespace specdec {
namespace {

BatchModel* shared_model(Decoder* of) {
  auto* decoder = dynamic_cast<BatchDecoder*>(of);
  return decoder == nullptr ? nullptr : &decoder->model();
}

BatchModel* shared_model(const StepRequest& step) { return shared_model(step.decoder); }

}  // namespace

Batch::Batch(std::vector<std::shared_ptr<Engine>> engines, IsInterrupt is_interrupt)
    : engines_(std::move(engines)), is_interrupt_(std::move(is_interrupt)) {
  const bool missing =
      std::any_of(engines_.begin(), engines_.end(), [](const auto& engine) { return !engine; });
  if (engines_.empty() || missing) {
    throw Error(ErrorCode::invalid_input, "a batch needs at least one engine");
  }
}

std::vector<Batch::Outcome> Batch::round() {
  outcomes_.assign(engines_.size(), {});
  in_round_.assign(engines_.size(), false);
  try {
    begin();
    draft();
    check();
  } catch (...) {
    for (const auto& engine : engines_) {
      if (engine->running()) engine->abandon_round();
      engine->share_costs({});
    }
    throw;
  }
  for (std::size_t i = 0; i < engines_.size(); ++i) {
    if (in_round_[i]) outcomes_[i].result = engines_[i]->end_round();
    engines_[i]->share_costs({});  // which are the batch's, and an engine may outlive it
  }
  return std::move(outcomes_);
}

// What steps cost one of `sequences`, where it shares those of both its models.
std::optional<SharedCosts> Batch::costs(Engine& engine, std::int32_t sequences) const {
  const BatchModel* target = shared_model(&engine.target());
  const BatchModel* drafter = shared_model(engine.drafter_model());
  const bool drafts_alone = engine.drafter_model() != nullptr && drafter == nullptr;
  if (target == nullptr || drafts_alone) return {};
  return SharedCosts{&target->costs(), drafter == nullptr ? nullptr : &drafter->costs(), &company_,
                     sequences};
}

// What steps of the models cost depends on the longest context in them.
void Batch::move_costs(const std::vector<std::size_t>& together) {
  std::int32_t longest = 0;
  for (const std::size_t i : together) {
    longest = std::max(longest, engines_[i]->sequence().length());
  }
  for (const std::size_t i : together) {
    for (Decoder* decoder : {&engines_[i]->target(), engines_[i]->drafter_model()}) {
      if (BatchModel* model = shared_model(decoder)) model->move_behind(longest);
    }
  }
}

void Batch::begin() {
  std::vector<std::size_t> together;
  for (std::size_t i = 0; i < engines_.size(); ++i) {
    Engine& engine = *engines_[i];
    if (!engine.running()) continue;
    guarded(i, [&] {
      if (!engine.prefilled() && !engine.prefill_step(1)) engine.prefill_drafter();
      if (engine.prefilled() || engine.cancelled()) together.push_back(i);
    });
  }
  move_costs(together);
  const auto sequences = static_cast<std::int32_t>(together.size());
  for (const std::size_t i : together) engines_[i]->share_costs(costs(*engines_[i], sequences));
  company_.begin(sequences, [&](std::int32_t i) {
    return engines_[together[static_cast<std::size_t>(i)]]->gain_of_drafting();
  });
  for (const std::size_t i : together) {
    in_round_[i] = true;
    guarded(i, [&] { engines_[i]->begin_round(); });
  }
}

void Batch::draft() {
  const auto sequences =
      static_cast<std::int32_t>(std::count(in_round_.begin(), in_round_.end(), true));
  for (std::int32_t depth = 0; sequences > 0; ++depth) {
    waits_.clear();
    for (std::size_t i = 0; i < engines_.size(); ++i) {
      const Engine& engine = *engines_[i];
      if (in_round_[i] && engine.drafting()) waits_.push_back({i, *engine.step(), false});
    }
    company_.add(depth, static_cast<std::int32_t>(waits_.size()));
    if (waits_.empty()) return;
    run(waits_);
  }
}

void Batch::check() {
  waits_.clear();
  std::int32_t rows = 0;
  for (std::size_t i = 0; i < engines_.size(); ++i) {
    if (!in_round_[i] || !engines_[i]->step()) continue;
    waits_.push_back({i, *engines_[i]->step(), false});
    rows += waits_.back().step.n;
  }
  std::int32_t room = std::max(kPrefillRows - rows, kLeastPrefillRows);
  for (std::size_t i = 0; i < engines_.size() && room > 0; ++i) {
    if (in_round_[i] || !engines_[i]->running()) continue;
    if (const auto step = engines_[i]->prefill_step(room)) {
      waits_.push_back({i, *step, true});
      room -= step->n;
    }
  }
  run(waits_);
}

void Batch::run(std::vector<Wait>& waits) {
  // Those of one model together, as many as fit into a step of it.
  const auto by_model = [](const Wait& a, const Wait& b) {
    return std::less<BatchModel*>()(shared_model(a.step), shared_model(b.step));
  };
  std::stable_sort(waits.begin(), waits.end(), by_model);
  for (std::size_t begin = 0; begin < waits.size();) {
    BatchModel* model = shared_model(waits[begin].step);
    std::size_t end = begin + 1;
    if (model == nullptr) {
      run_alone(waits[begin]);
    } else {
      std::int32_t rows = waits[begin].step.n;
      std::int32_t logit_rows = waits[begin].step.logit_rows;
      for (; end < waits.size() && shared_model(waits[end].step) == model; ++end) {
        rows += waits[end].step.n;
        logit_rows += waits[end].step.logit_rows;
        if (!model->fits(rows, logit_rows)) break;
      }
      run_together(*model, &waits[begin], end - begin);
    }
    begin = end;
  }
}

void Batch::run_together(BatchModel& model, Wait* waits, std::size_t count) {
  const auto decoder = [&](std::size_t i) {
    return static_cast<BatchDecoder*>(waits[i].step.decoder);
  };
  double seconds = 0;
  try {
    Stopwatch watch(seconds);
    parts_.clear();
    for (std::size_t i = 0; i < count; ++i) {
      parts_.push_back(decoder(i)->begin_step(waits[i].step));
    }
    model.run(parts_.data(), static_cast<std::int32_t>(count));
  } catch (...) {
    if (is_interrupt_(std::current_exception())) throw;
    if (count == 1) return fail(waits[0].engine, std::current_exception());
    for (std::size_t i = 0; i < count; ++i) run_alone(waits[i]);
    return;
  }
  for (std::size_t i = 0; i < count; ++i) {
    const LogitRows logits = decoder(i)->end_step(parts_[i]);
    take(waits[i], logits, seconds * parts_[i].share);
  }
}

void Batch::run_alone(const Wait& wait) {
  guarded(wait.engine, [&] {
    double seconds = 0;
    LogitRows rows{};
    {
      Stopwatch watch(seconds);
      rows = wait.step.run();
    }
    take(wait, rows, seconds);
  });
}

void Batch::take(const Wait& wait, const LogitRows& rows, double seconds) {
  guarded(wait.engine, [&] {
    Engine& engine = *engines_[wait.engine];
    if (wait.prefill) {
      engine.take_prefill(wait.step.n, seconds);
    } else {
      engine.take(rows, seconds);
    }
  });
}

template <class Work>
void Batch::guarded(std::size_t engine, const Work& work) {
  try {
    work();
  } catch (...) {
    if (is_interrupt_(std::current_exception())) throw;
    fail(engine, std::current_exception());
  }
}

void Batch::fail(std::size_t engine, std::exception_ptr error) {
  engines_[engine]->abandon_round();
  in_round_[engine] = false;
  outcomes_[engine].error = std::move(error);
}

}  // namespace specdec
