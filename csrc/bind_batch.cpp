// The part of the bindings that is about batches.

#include "bind_batch.h"

#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "batch.h"
#include "batch_decoders.h"
#include "bind_parts.h"
#include "error.h"
#include "gil.h"

namespace specdec {
namespace {

std::vector<std::shared_ptr<SequenceDecoder>> make_sequences(
    std::int32_t vocabulary, std::vector<std::int32_t> head_ids, std::int32_t layers,
    std::int32_t kv_heads, std::int32_t head_dim, std::int32_t capacity, std::int32_t sequences,
    std::int32_t max_width, std::int32_t max_logit_rows, std::int32_t hidden, bool gives_best,
    bool half_kv, py::function run) {
  DecoderOptions options = options_of(vocabulary, std::move(head_ids));
  options.max_width = max_width;
  options.max_logit_rows = max_logit_rows;
  const auto kv = std::make_shared<BatchKv>(
      InPlaceKvCache::Shape{layers, kv_heads, head_dim, capacity, half_kv}, sequences);
  BatchModel::Sizes sizes;
  sizes.max_logit_rows = sequences * max_logit_rows;
  sizes.max_width = sizes.max_logit_rows + std::max(max_width, Batch::kPrefillRows);
  sizes.head_size = options.head_size;
  sizes.hidden_size = hidden;
  sizes.gives_best = gives_best;
  const auto model = std::make_shared<BatchModel>(sizes, make_run(std::move(run)));
  std::vector<std::shared_ptr<SequenceDecoder>> decoders;
  for (std::int32_t i = 0; i < sequences; ++i) {
    decoders.push_back(std::make_shared<SequenceDecoder>(options, model, kv, i));
  }
  return decoders;
}

std::vector<std::shared_ptr<AttachedSequenceDecoder>> make_attached_sequences(
    std::int32_t vocabulary, std::vector<std::int32_t> head_ids,
    const std::vector<std::shared_ptr<SequenceDecoder>>& targets,
    const std::vector<std::int32_t>& target_layers, std::int32_t context, py::function run) {
  const DecoderOptions options = options_of(vocabulary, std::move(head_ids));
  if (targets.empty()) {
    throw Error(ErrorCode::invalid_input, "attached drafters need the decoders of their targets");
  }
  BatchModel::Sizes sizes;
  sizes.max_width = sizes.max_logit_rows = static_cast<std::int32_t>(targets.size());
  sizes.head_size = options.head_size;
  sizes.hidden_size = targets.front()->model().sizes().hidden_size;
  sizes.takes_features = true;
  const auto model = std::make_shared<BatchModel>(sizes, make_run(std::move(run)));
  std::vector<std::shared_ptr<AttachedSequenceDecoder>> decoders;
  for (const auto& target : targets) {
    decoders.push_back(std::make_shared<AttachedSequenceDecoder>(options, model, target,
                                                                 target_layers, context));
  }
  return decoders;
}

// The model's buffers; a decoder of any of its sequences has the same.
py::dict model_buffers(BatchModel& model, py::handle owner) {
  const BatchModel::Sizes& sizes = model.sizes();
  py::dict result;
  result["tokens"] = view(model.tokens().data(), {sizes.max_width}, owner);
  result["first_logit_row"] = view(model.first_logit_row().data(), {1}, owner);
  result["rows"] = view(model.rows().data(), {4, sizes.max_width}, owner);
  result["best_only"] = view(model.best_only().data(), {1}, owner);
  result["best"] = view(model.best().data(), {sizes.max_logit_rows}, owner);
  result["logits"] = view(model.logits().data(), {sizes.max_logit_rows, sizes.head_size}, owner);
  const std::vector<py::ssize_t> states{sizes.max_width, sizes.hidden_size};
  if (sizes.hidden_size > 0) result["hidden"] = view(model.hidden_rows().data(), states, owner);
  if (sizes.takes_features) result["features"] = view(model.features().data(), states, owner);
  return result;
}

py::dict sequence_buffers(const py::object& self) {
  auto& decoder = self.cast<SequenceDecoder&>();
  py::dict result = model_buffers(decoder.model(), self);
  BatchKv& kv = decoder.kv();
  add_kv(result, kv.memory(), kv.shape(), kv.sequences(), every_layer(kv.shape()), self);
  return result;
}

py::dict attached_sequence_buffers(const py::object& self) {
  auto& decoder = self.cast<AttachedSequenceDecoder&>();
  py::dict result = model_buffers(decoder.model(), self);
  BatchKv& kv = decoder.target().kv();
  add_kv(result, kv.memory(), kv.shape(), kv.sequences(), decoder.target_layers(), self);
  return result;
}

// Whatever Python does not count as an Exception: Ctrl-C, exit.
bool is_interrupt(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const py::error_already_set& raised) {
    py::gil_scoped_acquire gil;
    return !raised.matches(PyExc_Exception);
  } catch (...) {
    return false;
  }
}

py::object exception_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const py::error_already_set& raised) {
    return raised.value();
  } catch (const Error& raised) {
    return error_type(raised)(raised.what());
  } catch (const std::bad_alloc&) {
    return py::reinterpret_borrow<py::object>(PyExc_MemoryError)("no memory for a round");
  } catch (const std::exception& raised) {
    return py::reinterpret_borrow<py::object>(PyExc_RuntimeError)(raised.what());
  }
}

py::list round_of(Batch& batch) {
  std::vector<Batch::Outcome> outcomes;
  {
    const ReleasedGil released;
    outcomes = batch.round();
  }
  py::list result;
  for (Batch::Outcome& outcome : outcomes) {
    if (outcome.error) {
      result.append(exception_of(outcome.error));
    } else if (outcome.result) {
      result.append(std::move(*outcome.result));
    } else {
      result.append(py::none());
    }
  }
  return result;
}

}  // namespace

void bind_batch(py::module_& m) {
  py::class_<SequenceDecoder, Decoder, std::shared_ptr<SequenceDecoder>>(m, "SequenceDecoder")
      .def("buffers", &sequence_buffers);
  py::class_<AttachedSequenceDecoder, Decoder, std::shared_ptr<AttachedSequenceDecoder>>(
      m, "AttachedSequenceDecoder")
      .def("buffers", &attached_sequence_buffers);
  m.def("new_sequence_decoders", &make_sequences, py::kw_only(), py::arg("vocabulary"),
        py::arg("head_ids"), py::arg("layers"), py::arg("kv_heads"), py::arg("head_dim"),
        py::arg("capacity"), py::arg("sequences"), py::arg("max_width"),
        py::arg("max_logit_rows"), py::arg("hidden"), py::arg("gives_best") = false,
        py::arg("half_kv") = false, py::arg("run"));
  m.def("new_attached_sequence_decoders", &make_attached_sequences, py::kw_only(),
        py::arg("vocabulary"), py::arg("head_ids"), py::arg("targets"), py::arg("target_layers"),
        py::arg("context"), py::arg("run"));
  m.def("split_step", &split_step, py::arg("costs"), py::arg("rows"));
  py::class_<Batch>(m, "Batch")
      .def(py::init([](std::vector<std::shared_ptr<Engine>> engines) {
             return std::make_unique<Batch>(std::move(engines), &is_interrupt);
           }),
           py::arg("engines"))
      .def("round", &round_of);
}

}  // namespace specdec
