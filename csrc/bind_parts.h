#pragma once

// What the bindings of decoders are made of.

#include <pybind11/functional.h>
#include <pybind11/numpy.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "decoder.h"
#include "error.h"

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
