// The device code, compiled for the host.
#include "cuda/codec.cu"
#include "cuda/masking.cu"
#include "cuda/products_bfloat16.cu"
#include "cuda/products_float32.cu"
#include "cuda/products_tf32.cu"
#include "cuda/products_wgmma.cu"
#include "cuda/stage.cu"

namespace metatasnet::emulated {

void multiply_split(std::int64_t frames, int channels, int outputs, const float* data, const float* weights,
                    float* out) {
  PointwiseArgs args = product(frames, weights, outputs, channels, 1.0f, out);
  args.source[0] = rows(data, frames, channels);
  launch_pointwise<InSplitTf32, From::frames>(Stream(0, 0), 1, args);
}

}  // namespace metatasnet::emulated
