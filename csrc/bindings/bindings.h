#pragma once

#include <pybind11/pybind11.h>

namespace metatasnet {

void bind_build_info(pybind11::module_& module);
void bind_cpu(pybind11::module_& module);
void bind_cpu_generator(pybind11::module_& module);
void bind_cpu_losses(pybind11::module_& module);
void bind_cpu_features(pybind11::module_& module);
void bind_cuda(pybind11::module_& module);

}  // namespace metatasnet
