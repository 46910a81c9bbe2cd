#pragma once

#include <pybind11/pybind11.h>

namespace specdec {

// The cost model by itself, for simulations.
void bind_policy(pybind11::module_& m);

}  // namespace specdec
