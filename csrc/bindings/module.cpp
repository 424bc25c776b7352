// The Python module metatasnet_fast._native. It does not link torch: tensors are read through their Python attributes
// and checked here, and every call that computes releases the GIL. Each file of this folder has one bind_... function.
#include <pybind11/pybind11.h>

#include "bindings/bindings.h"

PYBIND11_MODULE(_native, module) {
  module.doc() = "Compiled part of metatasnet_fast.";
  metatasnet::bind_build_info(module);
  metatasnet::bind_cpu(module);
  metatasnet::bind_cpu_generator(module);
  metatasnet::bind_cpu_losses(module);
  metatasnet::bind_cpu_features(module);
  metatasnet::bind_cuda(module);
}
