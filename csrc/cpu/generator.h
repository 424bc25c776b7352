// The generated layers of a stage, all at once.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kernels.h"

namespace metatasnet {

// out (instruments, outputs) = bias + kernel (outputs, width) times hidden (width, instruments). In the backward pass
// `out` is the gradient that is read, and the other gradients are written.
struct GeneratedLayer {
  std::int64_t outputs;
  const float* hidden;
  const float* kernel;
  const float* bias;
  float* out;
  float *kernel_gradient, *bias_gradient;
  float* hidden_gradient;
};

// The result has the same bits for every number of threads.
void expand(const Kernels& kernels, const std::vector<GeneratedLayer>& layers, int instruments, int width, int threads);
void expand_gradient(const Kernels& kernels, const std::vector<GeneratedLayer>& layers, int instruments, int width,
                     int threads);

}  // namespace metatasnet
