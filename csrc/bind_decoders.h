#pragma once

#include <pybind11/pybind11.h>

namespace specdec {

// Defines the module's Decoder and its kinds.
void bind_decoders(pybind11::module_& m);

}  // namespace specdec
