#pragma once

#include <torch/csrc/utils/pybind.h>

namespace plait {

// Adds the class Stack to the module.
void bind_stack(pybind11::module_& m);

}  // namespace plait
