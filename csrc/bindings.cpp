// Translates types and errors between Python and the core, and releases the GIL around its work.
// No logic lives here.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "batch_decoders.h"
#include "bind_batch.h"
#include "bind_decoders.h"
#include "bind_parts.h"
#include "bind_policy.h"
#include "decoder.h"
#include "drafter.h"
#include "engine.h"
#include "error.h"
#include "gil.h"
#include "heap.h"
#include "verify.h"

namespace py = pybind11;
using namespace specdec;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

Rule rule_of(const std::string& name) {
  if (name == "greedy") return Rule::greedy;
  if (name == "token") return Rule::token;
  if (name == "block") return Rule::block;
  if (name == "coupled") return Rule::coupled;
  throw Error(ErrorCode::invalid_input, "acceptance is \"" + name +
                                            "\"; it must be \"greedy\", \"token\", \"block\" or "
                                            "\"coupled\"");
}

// Rows [rows, V] of a chain; behind them, from `leaves` on, those after siblings.
class ArrayRows final : public TargetRows {
 public:
  ArrayRows(const float* p, std::int32_t rows, std::int32_t vocabulary, std::int32_t leaves = 0)
      : rows_(rows), leaves_(leaves) {
    for (std::int32_t i = 0; i < rows; ++i) {
      const float* row = p + static_cast<std::size_t>(i) * vocabulary;
      double total = 0;
      for (std::int32_t x = 0; x < vocabulary; ++x) total += row[x];
      rows_[i].refer(row, vocabulary, nullptr, total);
    }
  }
  const Distribution& row(std::int32_t i) override { return rows_[i]; }
  const Distribution& leaf(std::int32_t sibling) override { return rows_[leaves_ + sibling]; }
  const Distribution* all() const { return rows_.data(); }

 private:
  std::vector<Distribution> rows_;
  std::int32_t leaves_;
};

// p[n, k + 1 + siblings, V] (the chain's rows, then those after siblings), q[n, k, V], tokens[n, k],
// seeds[n], siblings[n, siblings] of the drafts that sibling_of[siblings] says, ascending; round i
// of n at the given position.
py::tuple verify_batch(const std::string& rule_name, const Array<float>& p, const Array<float>& q,
                       const Array<std::int32_t>& tokens, const Array<std::uint64_t>& seeds,
                       std::uint64_t position,
                       const std::optional<Array<std::int32_t>>& siblings,
                       const std::vector<std::int32_t>& sibling_of) {
  const Rule rule = rule_of(rule_name);
  const auto leaves = static_cast<py::ssize_t>(sibling_of.size());
  if (p.ndim() != 3 || q.ndim() != 3 || tokens.ndim() != 2 || seeds.ndim() != 1 ||
      p.shape(1) != q.shape(1) + 1 + leaves || p.shape(2) != q.shape(2) ||
      tokens.shape(1) != q.shape(1) || q.shape(0) != p.shape(0) ||
      tokens.shape(0) != p.shape(0) || seeds.shape(0) != p.shape(0) ||
      siblings.has_value() != (leaves > 0)) {
    throw Error(ErrorCode::invalid_input,
                "shapes must be target_probs [n, k+1, V], draft_probs [n, k, V], draft_tokens "
                "[n, k] and seeds [n]");
  }
  const auto n = static_cast<std::int32_t>(p.shape(0));
  const auto k = static_cast<std::int32_t>(q.shape(1));
  std::vector<std::int32_t> first_sibling(static_cast<std::size_t>(k) + 1);
  for (const std::int32_t draft : sibling_of) {
    if (draft < 0 || draft >= k) {
      throw Error(ErrorCode::invalid_input, "siblings are of drafts 0 to k - 1");
    }
    ++first_sibling[static_cast<std::size_t>(draft) + 1];
  }
  std::partial_sum(first_sibling.begin(), first_sibling.end(), first_sibling.begin());
  if (leaves > 0 && (siblings->ndim() != 2 || siblings->shape(0) != n ||
                     siblings->shape(1) != leaves ||
                     !std::is_sorted(sibling_of.begin(), sibling_of.end()))) {
    throw Error(ErrorCode::invalid_input,
                "siblings must have the shape [n, siblings], in the order of their drafts");
  }
  const auto vocabulary = static_cast<std::int32_t>(p.shape(2));
  py::array_t<std::int32_t> accepted(n);
  py::array_t<std::int32_t> next(n);
  py::array_t<std::int32_t> taken(n);
  const float* p_data = p.data();
  const float* q_data = q.data();
  const std::int32_t* token_data = tokens.data();
  const std::uint64_t* seed_data = seeds.data();
  std::int32_t* accepted_data = accepted.mutable_data();
  std::int32_t* next_data = next.mutable_data();
  std::int32_t* taken_data = taken.mutable_data();
  const std::int32_t* sibling_data = leaves > 0 ? siblings->data() : nullptr;
  const auto rows = static_cast<std::int32_t>(k + 1 + leaves);
  {
    const ReleasedGil released;
    RaceNoise race;
    std::vector<float> scratch;
    Odds odds;
    for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
      ArrayRows target(p_data + i * rows * vocabulary, rows, vocabulary, k + 1);
      const ArrayRows draft(q_data + i * k * vocabulary, k, vocabulary);
      Drafts drafts{token_data + i * k, draft.all(), k};
      if (leaves > 0) {
        drafts.siblings = sibling_data + i * leaves;
        drafts.first_sibling = first_sibling.data();
      }
      const Verdict verdict =
          verify(rule, target, drafts, {seed_data[i], position}, race, scratch, odds);
      accepted_data[i] = verdict.accepted;
      next_data[i] = verdict.next;
      taken_data[i] = verdict.sibling;
    }
  }
  if (leaves == 0) return py::make_tuple(accepted, next);
  return py::make_tuple(accepted, next, taken);
}

// What Rule::block expects of each round's drafts, one by one and as a block: each [n, k].
py::tuple block_odds(const Array<float>& p, const Array<float>& q,
                     const Array<std::int32_t>& tokens) {
  if (p.ndim() != 3 || q.ndim() != 3 || tokens.ndim() != 2 || p.shape(1) != q.shape(1) + 1 ||
      p.shape(2) != q.shape(2) || tokens.shape(1) != q.shape(1) || q.shape(0) != p.shape(0) ||
      tokens.shape(0) != p.shape(0)) {
    throw Error(ErrorCode::invalid_input,
                "shapes must be target_probs [n, k+1, V], draft_probs [n, k, V] and draft_tokens "
                "[n, k]");
  }
  const auto n = static_cast<std::size_t>(p.shape(0));
  const auto k = static_cast<std::int32_t>(q.shape(1));
  const auto vocabulary = static_cast<std::int32_t>(p.shape(2));
  py::array_t<double> by_token({p.shape(0), q.shape(1)});
  py::array_t<double> by_block({p.shape(0), q.shape(1)});
  std::vector<float> scratch;
  Odds odds;
  for (std::size_t i = 0; i < n; ++i) {
    ArrayRows target(p.data() + i * (k + 1) * vocabulary, k + 1, vocabulary);
    const ArrayRows draft(q.data() + i * k * vocabulary, k, vocabulary);
    verify_block(target, {tokens.data() + i * k, draft.all(), k}, {0, i}, scratch, odds);
    std::copy(odds.token.begin(), odds.token.end(), by_token.mutable_data() + i * k);
    std::copy(odds.block.begin(), odds.block.end(), by_block.mutable_data() + i * k);
  }
  return py::make_tuple(by_token, by_block);
}

// Tokens [n] that win the race over probs[n, V], or the distributions of logits[n, V], with seeds[n]
// at the given position.
py::array_t<std::int32_t> race_batch(const Array<float>& probs, const Array<std::uint64_t>& seeds,
                                     std::uint64_t position, bool logits) {
  if (probs.ndim() != 2 || seeds.ndim() != 1 || seeds.shape(0) != probs.shape(0)) {
    throw Error(ErrorCode::invalid_input, "shapes must be probs [n, V] and seeds [n]");
  }
  const auto n = static_cast<std::int32_t>(probs.shape(0));
  const auto vocabulary = static_cast<std::int32_t>(probs.shape(1));
  py::array_t<std::int32_t> winners(n);
  ArrayRows rows(probs.data(), n, vocabulary);
  Sampler sampler;  // temperature 1
  Distribution lazy;
  std::vector<float> row(static_cast<std::size_t>(vocabulary));
  RaceNoise race;
  for (std::int32_t i = 0; i < n; ++i) {
    if (logits) {
      std::copy_n(probs.data(i, 0), row.size(), row.data());
      sampler.distribution({row.data(), vocabulary, nullptr}, false, lazy, true);
    }
    const Distribution& raced = logits ? lazy : rows.row(i);
    winners.mutable_data()[i] = raced.race({seeds.data()[i], position}, 0, race);
  }
  return winners;
}

// The distributions that rows of logits [V] or [n, V] become, given tokens before each of them.
py::array_t<float> distribution_of(const Array<float>& logits, const SamplingOptions& options,
                                   const std::vector<std::int32_t>& prompt,
                                   const std::vector<std::int32_t>& generated) {
  if (logits.ndim() < 1 || logits.ndim() > 2 || logits.size() < 1) {
    throw Error(ErrorCode::invalid_input, "logits must have the shape [V] or [n, V]");
  }
  const auto vocabulary = static_cast<std::int32_t>(logits.shape(logits.ndim() - 1));
  Sequence sequence;
  sequence.start(prompt);
  Sampler sampler;
  sampler.start(options, vocabulary, sequence);
  for (const std::int32_t token : generated) sampler.see(token);
  Distribution distribution;
  std::vector<float> row(static_cast<std::size_t>(vocabulary));
  py::array_t<float> result(
      std::vector<py::ssize_t>(logits.shape(), logits.shape() + logits.ndim()));
  for (py::ssize_t begin = 0; begin < logits.size(); begin += vocabulary) {
    std::copy_n(logits.data() + begin, row.size(), row.data());
    sampler.distribution({row.data(), vocabulary, nullptr}, false, distribution);
    for (std::int32_t x = 0; x < vocabulary; ++x) {
      result.mutable_data()[begin + x] = static_cast<float>(distribution.probability(x));
    }
  }
  return result;
}

void translate_errors() {
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Error& error) {
      py::set_error(error_type(error), error.what());
    }
  });
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  using release = py::call_guard<ReleasedGil>;
  ReleasedGil::wait_at_exit();
  translate_errors();

  py::class_<SamplingOptions>(m, "SamplingOptions")
      .def(py::init<>())
      .def_readwrite("temperature", &SamplingOptions::temperature)
      .def_readwrite("top_k", &SamplingOptions::top_k)
      .def_readwrite("top_p", &SamplingOptions::top_p)
      .def_readwrite("min_p", &SamplingOptions::min_p)
      .def_readwrite("repetition_penalty", &SamplingOptions::repetition_penalty)
      .def_readwrite("presence_penalty", &SamplingOptions::presence_penalty)
      .def_readwrite("frequency_penalty", &SamplingOptions::frequency_penalty)
      .def_readwrite("logit_bias", &SamplingOptions::logit_bias)
      .def_readwrite("seed", &SamplingOptions::seed);

  py::class_<StreamOptions>(m, "StreamOptions")
      .def(py::init<>())
      .def_readwrite("sampling", &StreamOptions::sampling)
      .def_readwrite("stop_ids", &StreamOptions::stop_ids)
      .def_readwrite("max_tokens", &StreamOptions::max_tokens)
      .def(
          "set_rule",
          [](StreamOptions& self, const std::string& name) { self.rule = rule_of(name); },
          py::arg("name"));

  py::enum_<Finish>(m, "Finish")
      .value("none", Finish::none)
      .value("stop", Finish::stop)
      .value("length", Finish::length)
      .value("cancelled", Finish::cancelled);

  py::class_<RoundResult>(m, "RoundResult")
      .def_readonly("tokens", &RoundResult::tokens)
      .def_readonly("drafted", &RoundResult::drafted)
      .def_readonly("finish", &RoundResult::finish);

  py::class_<Totals>(m, "Totals")
      .def_readonly("rounds", &Totals::rounds)
      .def_readonly("tokens", &Totals::tokens)
      .def_readonly("checked", &Totals::checked)
      .def_readonly("prompt_tokens", &Totals::prompt_tokens)
      .def_readonly("prefilled_tokens", &Totals::prefilled_tokens)
      .def_readonly("drafted_at", &Totals::drafted_at)
      .def_readonly("accepted_at", &Totals::accepted_at)
      .def_readonly("looked_up", &Totals::looked_up)
      .def_readonly("looked_up_accepted", &Totals::looked_up_accepted)
      .def_readonly("prefill_seconds", &Totals::prefill_seconds)
      .def_readonly("draft_seconds", &Totals::draft_seconds)
      .def_readonly("verify_seconds", &Totals::verify_seconds)
      .def_readonly("accept_seconds", &Totals::accept_seconds)
      .def_readonly("model_seconds", &Totals::model_seconds);

  bind_decoders(m);
  bind_policy(m);

  py::class_<Drafter, std::shared_ptr<Drafter>>(m, "Drafter");
  py::class_<ModelDrafter, Drafter, std::shared_ptr<ModelDrafter>>(m, "ModelDrafter")
      .def(py::init<std::shared_ptr<Decoder>>(), py::arg("decoder").none(false));
  py::class_<AttachedDrafter, Drafter, std::shared_ptr<AttachedDrafter>>(m, "AttachedDrafter")
      .def(py::init<std::shared_ptr<AttachedDecoder>>(), py::arg("decoder").none(false))
      .def(py::init<std::shared_ptr<AttachedSequenceDecoder>>(), py::arg("decoder").none(false));
  py::class_<NgramDrafter, Drafter, std::shared_ptr<NgramDrafter>>(m, "NgramDrafter")
      .def(py::init<std::int32_t, std::int32_t>(), py::arg("min_match"), py::arg("max_match"));
  py::class_<MixedDrafter, Drafter, std::shared_ptr<MixedDrafter>>(m, "MixedDrafter")
      .def(py::init<std::shared_ptr<Drafter>, std::int32_t, std::int32_t>(),
           py::arg("model").none(false), py::arg("min_match"), py::arg("max_match"));

  py::class_<Engine, std::shared_ptr<Engine>>(m, "Engine")
      .def(py::init<std::shared_ptr<Decoder>, std::shared_ptr<Drafter>>(),
           py::arg("target").none(false), py::arg("drafter"))
      .def("start", &Engine::start, py::arg("prompt"), py::arg("options"), release())
      .def("prefill", &Engine::prefill, release())
      .def("round", &Engine::round, release())
      .def("cancel", &Engine::cancel)
      .def("set_draft_length", &Engine::set_draft_length, py::arg("k"))
      .def("set_draft_width", &Engine::set_draft_width, py::arg("width"))
      .def_property_readonly("draft_length", &Engine::draft_length)
      .def_property_readonly("draft_width", &Engine::draft_width)
      .def_property_readonly("max_context", &Engine::max_context)
      .def_property_readonly("longest_draft", &Engine::longest_draft)
      .def_property_readonly("widest_draft", &Engine::widest_draft)
      .def_property_readonly("target_takes_trees", &Engine::target_takes_trees)
      .def_property_readonly("totals", [](const Engine& self) { return self.totals(); })
      .def_property_readonly("tokens",
                             [](const Engine& self) { return self.sequence().tokens(); });
  bind_batch(m);
  m.attr("AUTO") = kAuto;
  m.attr("MAX_DRAFT_LENGTH") = Engine::kMaxDraftLength;
  m.attr("MAX_DRAFT_WIDTH") = kMaxCandidates;

  m.def("block_odds", &block_odds, py::arg("target_probs"), py::arg("draft_probs"),
        py::arg("draft_tokens"));
  m.def("verify_batch", &verify_batch, py::arg("rule"), py::arg("target_probs"),
        py::arg("draft_probs"), py::arg("draft_tokens"), py::arg("seeds"), py::arg("position"),
        py::arg("siblings") = py::none(), py::arg("sibling_of") = std::vector<std::int32_t>());
  m.def("race_batch", &race_batch, py::arg("probs"), py::arg("seeds"), py::arg("position"),
        py::arg("logits") = false);
  m.def("distribution_of", &distribution_of, py::arg("logits"), py::arg("options"),
        py::arg("prompt"), py::arg("generated"));
  m.def("give_back_free_memory", &give_back_free_memory);
}
