#pragma once

// What the bindings of decoders are made of.

#include <pybind11/functional.h>
#include <pybind11/numpy.h>

#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "decoder.h"
#include "error.h"
#include "kv_cache.h"

namespace specdec {

namespace py = pybind11;

// Keeps a Python object alive, and takes the GIL to let it go.
template <class T>
std::shared_ptr<T> hold(T object) {
  const auto drop = [](T* held) {
    py::gil_scoped_acquire gil;
    delete held;
  };
  return std::shared_ptr<T>(new T(std::move(object)), drop);
}

inline Decoder::Run make_run(py::function function) {
  return [held = hold(std::move(function))](std::int32_t width, std::int32_t head) {
    py::gil_scoped_acquire gil;
    (*held)(width, head);
  };
}

// A numpy view of memory that `owner` keeps alive.
template <class T>
py::array view(T* data, std::vector<py::ssize_t> shape, py::handle owner) {
  return py::array(py::dtype::of<T>(), std::move(shape), data, owner);
}

inline py::array view_kv(std::uint8_t* data, bool halves, std::vector<py::ssize_t> shape,
                         py::handle owner) {
  return py::array(py::dtype(halves ? "float16" : "float32"), std::move(shape), data, owner);
}

// Adds the keys and values of layers as those of a graph's layers 0, 1, …, and halves as one tensor
// of all the cache's layers too.
inline void add_kv(py::dict& buffers, KvLayers& memory, const KvMemory& sizes,
                   std::int32_t sequences, const std::vector<std::int32_t>& layers,
                   py::handle owner) {
  const std::vector<py::ssize_t> shape{sequences, sizes.kv_heads, sizes.columns(), sizes.head_dim};
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const std::string index = std::to_string(i);
    buffers[py::str("key." + index)] =
        view_kv(memory.keys(layers[i]), sizes.halves, shape, owner);
    buffers[py::str("value." + index)] =
        view_kv(memory.values(layers[i]), sizes.halves, shape, owner);
  }
  if (!sizes.halves) return;
  std::vector<py::ssize_t> whole{sizes.layers, 2};
  whole.insert(whole.end(), shape.begin(), shape.end());
  buffers["past"] = view_kv(memory.data(), true, std::move(whole), owner);
}

inline std::vector<std::int32_t> every_layer(const KvMemory& sizes) {
  std::vector<std::int32_t> layers(static_cast<std::size_t>(sizes.layers));
  std::iota(layers.begin(), layers.end(), 0);
  return layers;
}

// The Python class of the core's errors.
inline py::object error_type(const Error& error) {
  const char* name = "InvalidInputError";
  if (error.code() == ErrorCode::context_full) name = "ContextFullError";
  if (error.code() == ErrorCode::model_run) name = "ModelRunError";
  return py::module_::import("specdec.errors").attr(name);
}

inline DecoderOptions options_of(std::int32_t vocabulary, std::vector<std::int32_t> head_ids) {
  DecoderOptions options;
  options.vocabulary = vocabulary;
  options.head_size = head_ids.empty() ? vocabulary : static_cast<std::int32_t>(head_ids.size());
  options.head_ids = std::move(head_ids);
  return options;
}

}  // namespace specdec
