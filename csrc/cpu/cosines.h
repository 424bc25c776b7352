// The cosine losses between encoded sources; see docs/cpu-backend.md.
#pragma once

#include "cpu/stage.h"

namespace metatasnet {

// The inputs of the forward and the backward pass.
struct CosineCall {
  std::int64_t items, frames;
  int instruments, carried;  // see CosineArgs
  Latents latents;           // (items, instruments, frames, channels)
  const float* mask;         // (items, instruments)
};

struct CosineSums {
  double pairs, neighbours;
};

// The result has the same bits for every number of threads.
CosineSums cosine_sums(const Kernels& kernels, const CosineCall& call, int threads);

// The latents' gradient (items, instruments, frames, padded(channels)), in bfloat16 or float32, computed from that of
// the sums.
void cosine_gradient(const Kernels& kernels, const CosineCall& call, const CosineSums& gradient, bool bfloat16,
                     void* latents_gradient, int threads);

}  // namespace metatasnet
