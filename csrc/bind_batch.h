#pragma once

#include <pybind11/pybind11.h>

namespace specdec {

void bind_batch(pybind11::module_& m);  // decoders that share a model, Batch; after Engine

}  // namespace specdec
