// The decoders' part of the bindings: their buffers as numpy arrays, and Python's arrays and
// callables as what the decoders hold on to.

#include "bind_decoders.h"

#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "attached_decoder.h"
#include "bind_parts.h"
#include "error.h"
#include "fixed_decoder.h"
#include "gil.h"
#include "in_place_decoder.h"

namespace py = pybind11;

namespace specdec {
namespace {

// Arrays that are taken as they are: what is kept alive must be the caller's memory, not a copy.
template <class T>
using Exact = py::array_t<T, py::array::c_style>;

std::shared_ptr<const std::uint16_t> shared_elements(const Exact<std::uint16_t>& array) {
  return {hold(py::object(array)), array.data()};
}

// Of elements of 1 or 2 bytes, whatever they mean.
py::array view_bytes(std::uint8_t* data, std::int32_t element_bytes,
                     std::vector<py::ssize_t> shape, py::handle owner) {
  if (element_bytes == 1) return view(data, std::move(shape), owner);
  return view(reinterpret_cast<std::uint16_t*>(data), std::move(shape), owner);
}

template <class T>
void check_shape(const char* name, const Exact<T>& array, const std::vector<py::ssize_t>& shape) {
  if (std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()) == shape) return;
  std::string wanted;
  for (const py::ssize_t size : shape) {
    wanted += (wanted.empty() ? "[" : ", ") + std::to_string(size);
  }
  throw Error(ErrorCode::invalid_input, name + (" must have the shape " + wanted) + "]");
}

// --- models that write K/V in place ---

std::shared_ptr<InPlaceDecoder> make_in_place(
    std::int32_t vocabulary, std::vector<std::int32_t> head_ids, std::int32_t layers,
    std::int32_t kv_heads, std::int32_t head_dim, std::int32_t capacity, std::int32_t min_width,
    std::int32_t max_width, std::int32_t max_logit_rows, std::int32_t row_tile,
    std::int32_t hidden, bool takes_rows, bool gives_best, bool half_kv, py::function run) {
  DecoderOptions options = options_of(vocabulary, std::move(head_ids));
  options.max_width = max_width;
  options.max_logit_rows = max_logit_rows;
  return std::make_shared<InPlaceDecoder>(
      std::move(options), InPlaceDecoder::Padding{min_width, row_tile},
      InPlaceKvCache::Shape{layers, kv_heads, head_dim, capacity, half_kv},
      InPlaceDecoder::Graph{hidden, takes_rows, gives_best}, make_run(std::move(run)));
}

py::object hidden_of(const py::object& self, std::int32_t position) {
  const auto& decoder = self.cast<InPlaceDecoder&>();
  const float* row = decoder.hidden(position);
  if (row == nullptr) return py::none();
  return py::array_t<float>(decoder.hidden_size(), row);  // a copy
}

py::dict in_place_buffers(const py::object& self) {
  auto& decoder = self.cast<InPlaceDecoder&>();
  const auto& options = decoder.options();
  const auto& cache = decoder.cache().shape();
  py::dict result;
  result["tokens"] = view(decoder.tokens().data(), {options.max_width}, self);
  result["seqlens_k"] = view(decoder.seqlens_k().data(), {1}, self);
  result["total_length"] = view(decoder.total_length().data(), {}, self);
  result["first_logit_row"] = view(decoder.first_logit_row().data(), {1}, self);
  result["rows"] = view(decoder.rows().data(), {4, options.max_width}, self);
  result["best_only"] = view(decoder.best_only().data(), {1}, self);
  result["logits"] =
      view(decoder.logits().data(), {options.max_logit_rows, options.head_size}, self);
  result["best"] = view(decoder.best().data(), {options.max_logit_rows}, self);
  if (decoder.hidden_size() > 0) {
    result["hidden"] =
        view(decoder.hidden_rows().data(), {options.max_width, decoder.hidden_size()}, self);
  }
  add_kv(result, decoder.cache().memory(), cache, 1, every_layer(cache), self);
  return result;
}

// --- models that share a target's K/V ---

std::shared_ptr<AttachedDecoder> make_attached(std::int32_t vocabulary,
                                               std::vector<std::int32_t> head_ids,
                                               std::shared_ptr<InPlaceDecoder> target,
                                               std::vector<std::int32_t> target_layers,
                                               std::int32_t context, py::function run) {
  return std::make_shared<AttachedDecoder>(options_of(vocabulary, std::move(head_ids)),
                                           std::move(target), std::move(target_layers), context,
                                           make_run(std::move(run)));
}

py::dict attached_buffers(const py::object& self) {
  auto& decoder = self.cast<AttachedDecoder&>();
  const std::int32_t hidden = decoder.target().hidden_size();
  py::dict result;
  result["tokens"] = view(decoder.tokens().data(), {1}, self);
  result["seqlens_k"] = view(decoder.seqlens_k().data(), {1}, self);
  result["total_length"] = view(decoder.total_length().data(), {}, self);
  result["first_logit_row"] = view(decoder.first_logit_row().data(), {1}, self);
  result["rows"] = view(decoder.rows().data(), {4, 1}, self);
  result["logits"] = view(decoder.logits().data(), {1, decoder.options().head_size}, self);
  result["features"] = view(decoder.features().data(), {1, hidden}, self);
  result["hidden"] = view(decoder.hidden().data(), {1, hidden}, self);
  InPlaceKvCache& cache = decoder.target().cache();
  add_kv(result, cache.memory(), cache.shape(), 1, decoder.target_layers(), self);
  return result;
}

// --- models of fixed shape ---

template <class T>
Exact<T> entry(const py::dict& sink, const char* name, const std::vector<py::ssize_t>& shape) {
  if (!sink.contains(name) || !py::isinstance<Exact<T>>(sink[name])) {
    throw Error(ErrorCode::invalid_input, std::string("the sink needs \"") + name +
                                              "\", a contiguous array of " +
                                              std::string(py::str(py::dtype::of<T>())));
  }
  auto array = sink[name].cast<Exact<T>>();
  check_shape(name, array, shape);
  return array;
}

template <class T>
std::vector<std::uint8_t> sink_bytes(const py::dict& sink, const char* name,
                                     const std::vector<py::ssize_t>& shape) {
  const Exact<T> array = entry<T>(sink, name, shape);
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(array.data());
  return std::vector<std::uint8_t>(bytes, bytes + array.nbytes());
}

Sink sink_of(const py::dict& dict, const ScatterKvCache::Shape& cache, std::int32_t head_size) {
  const std::vector<py::ssize_t> shape{cache.layers, cache.kv_heads, cache.head_dim};
  const auto bytes = cache.element_bytes == 1 ? sink_bytes<std::uint8_t> : sink_bytes<std::uint16_t>;
  const Exact<float> logits = entry<float>(dict, "logits", {head_size});
  Sink sink;
  sink.token = dict["token"].cast<std::int32_t>();
  sink.keys = bytes(dict, "key", shape);
  sink.values = bytes(dict, "value", shape);
  sink.logits.assign(logits.data(), logits.data() + logits.size());
  return sink;
}

// Memory that a Python function gives as arrays. To be called while `function` is there.
ScatterKvCache::Allocate allocate_by(const std::optional<py::function>& function) {
  if (!function) return {};
  return [&function](std::size_t bytes) -> std::shared_ptr<std::uint8_t> {
    py::object given = (*function)(bytes);
    Exact<std::uint8_t> array;
    if (py::isinstance<Exact<std::uint8_t>>(given)) array = given;
    if (static_cast<std::size_t>(array.size()) != bytes || !array.writeable()) {
      throw Error(ErrorCode::invalid_input, "past_memory must give writable uint8 arrays of " +
                                                std::to_string(bytes) + " elements");
    }
    auto* data = array.mutable_data();
    return {hold(py::object(std::move(array))), data};
  };
}

std::shared_ptr<FixedDecoder> make_fixed(
    std::int32_t vocabulary, std::vector<std::int32_t> head_ids, std::int32_t layers,
    std::int32_t kv_heads, std::int32_t head_dim, std::int32_t hidden, std::int32_t past,
    std::vector<std::int32_t> widths, std::int32_t kv_bytes,
    const Exact<std::uint16_t>& embedding, const Exact<std::uint16_t>& rotary,
    std::uint16_t mask_allowed, std::uint16_t mask_blocked, float logits_scale,
    std::int32_t logits_zero_point, bool logits_float16, const std::optional<py::dict>& sink,
    bool has_best, py::function run, const std::optional<py::function>& past_memory) {
  DecoderOptions options = options_of(vocabulary, std::move(head_ids));
  const ScatterKvCache::Shape cache{layers, kv_heads, head_dim, past, kv_bytes};
  const std::int32_t widest = widths.empty() ? 0 : widths.back();
  check_shape("embedding", embedding, {vocabulary, hidden});
  check_shape("rotary", rotary, {2, past + widest, head_dim / 2});
  FixedOptions fixed;
  fixed.widths = std::move(widths);
  fixed.hidden = hidden;
  fixed.mask = {mask_allowed, mask_blocked};
  fixed.logits_scale = logits_scale;
  fixed.logits_zero_point = logits_zero_point;
  fixed.logits_are_halves = logits_float16;
  fixed.has_best = has_best;
  if (sink) fixed.sink = sink_of(*sink, cache, options.head_size);
  return std::make_shared<FixedDecoder>(
      std::move(options), std::move(fixed), cache,
      FixedTables{shared_elements(embedding), shared_elements(rotary)}, make_run(std::move(run)),
      allocate_by(past_memory));
}

py::dict fixed_buffers(const py::object& self) {
  auto& decoder = self.cast<FixedDecoder&>();
  const std::int32_t head_size = decoder.options().head_size;
  auto& cache = decoder.cache();
  const auto& [layers, heads, dim, past, bytes] = cache.shape();
  py::dict result;
  const auto& widths = decoder.fixed().widths;
  for (std::size_t index = 0; index < widths.size(); ++index) {
    const std::int32_t width = widths[index];
    const std::string end = "." + std::to_string(width);
    result[py::str("x" + end)] = view(decoder.x(), {1, width, decoder.fixed().hidden}, self);
    result[py::str("cos" + end)] = view(decoder.cosines(), {1, 1, width, dim / 2}, self);
    result[py::str("sin" + end)] = view(decoder.sines(), {1, 1, width, dim / 2}, self);
    result[py::str("mask" + end)] = view(decoder.mask(index), {1, 1, width, past + width}, self);
    result[py::str("logits" + end)] = view(decoder.logits(), {1, width, head_size}, self);
    if (decoder.fixed().has_best) {
      result[py::str("best" + end)] = view(decoder.best(), {1, width}, self);
    }
    for (std::int32_t layer = 0; layer < layers; ++layer) {
      const std::string layer_end = "." + std::to_string(layer) + end;
      result[py::str("new_key" + layer_end)] =
          view_bytes(cache.new_keys(layer), bytes, {1, heads, dim, width}, self);
      result[py::str("new_value" + layer_end)] =
          view_bytes(cache.new_values(layer), bytes, {1, heads, width, dim}, self);
    }
  }
  for (std::int32_t layer = 0; layer < layers; ++layer) {
    const std::string end = "." + std::to_string(layer);
    result[py::str("past_key" + end)] =
        view_bytes(cache.past_keys(layer), bytes, {1, heads, dim, past}, self);
    result[py::str("past_value" + end)] =
        view_bytes(cache.past_values(layer), bytes, {1, heads, past, dim}, self);
  }
  return result;
}

py::array forward(const py::object& self, const std::vector<std::int32_t>& tokens,
                  std::int32_t logit_rows,
                  const std::optional<std::vector<std::int32_t>>& parents) {
  auto& decoder = self.cast<Decoder&>();
  if (parents && parents->size() != tokens.size()) {
    throw Error(ErrorCode::invalid_input, "a step has one parent for each of its tokens");
  }
  LogitRows rows{};
  {
    const ReleasedGil released;
    rows = decoder.forward(tokens.data(), static_cast<std::int32_t>(tokens.size()), logit_rows,
                           Wanted::logits, parents ? parents->data() : nullptr);
  }
  return view(rows.data, {rows.rows, rows.columns}, self);
}

}  // namespace

void bind_decoders(py::module_& m) {
  py::class_<Decoder, std::shared_ptr<Decoder>>(m, "Decoder")
      .def("forward", &forward, py::arg("tokens"), py::arg("logit_rows"),
           py::arg("parents") = py::none())
      .def("move_row", &Decoder::move_row, py::arg("row"), py::arg("place"))
      .def_property_readonly("takes_trees", &Decoder::takes_trees)
      .def("commit", [](Decoder& self, std::int32_t n) { self.cache().commit(n); })
      .def("truncate", [](Decoder& self, std::int32_t n) { self.cache().truncate(n); })
      .def_property_readonly("length", [](Decoder& self) { return self.cache().length(); })
      .def_property_readonly("capacity", [](Decoder& self) { return self.cache().capacity(); })
      .def_property_readonly("run_seconds", &Decoder::run_seconds)
      .def_property_readonly("runs", &Decoder::runs);

  py::class_<InPlaceDecoder, Decoder, std::shared_ptr<InPlaceDecoder>>(m, "InPlaceDecoder")
      .def(py::init(&make_in_place), py::kw_only(), py::arg("vocabulary"), py::arg("head_ids"),
           py::arg("layers"), py::arg("kv_heads"), py::arg("head_dim"), py::arg("capacity"),
           py::arg("min_width"), py::arg("max_width"), py::arg("max_logit_rows"),
           py::arg("row_tile") = 0, py::arg("hidden") = 0, py::arg("takes_rows") = false,
           py::arg("gives_best") = false, py::arg("half_kv") = false, py::arg("run"))
      .def("hidden", &hidden_of, py::arg("position"))
      .def("buffers", &in_place_buffers);

  py::class_<AttachedDecoder, Decoder, std::shared_ptr<AttachedDecoder>>(m, "AttachedDecoder")
      .def(py::init(&make_attached), py::kw_only(), py::arg("vocabulary"), py::arg("head_ids"),
           py::arg("target").none(false), py::arg("target_layers"), py::arg("context"),
           py::arg("run"))
      .def("follow", &AttachedDecoder::follow, py::arg("position"))
      .def("buffers", &attached_buffers);

  py::class_<FixedDecoder, Decoder, std::shared_ptr<FixedDecoder>>(m, "FixedDecoder")
      .def(py::init(&make_fixed), py::kw_only(), py::arg("vocabulary"), py::arg("head_ids"),
           py::arg("layers"), py::arg("kv_heads"), py::arg("head_dim"), py::arg("hidden"),
           py::arg("past"), py::arg("widths"), py::arg("kv_bytes"),
           py::arg("embedding").noconvert(), py::arg("rotary").noconvert(),
           py::arg("mask_allowed"), py::arg("mask_blocked"), py::arg("logits_scale"),
           py::arg("logits_zero_point"), py::arg("logits_float16"), py::arg("sink"),
           py::arg("has_best"), py::arg("run"), py::arg("past_memory") = py::none())
      .def("buffers", &fixed_buffers);
}

}  // namespace specdec
