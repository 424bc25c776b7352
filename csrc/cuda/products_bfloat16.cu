// The 1x1 convolutions in bfloat16.
#include "cuda/launch_products.h"

namespace metatasnet::METATASNET_DEVICES {

METATASNET_PRODUCTS(InBfloat16)

void launch_mix_conv(const Stream& stream, std::int64_t units, const MixArgs& args) {
  launch<MixConv>(stream, {tiles_of(args.product.frames), 1, units}, MixConv::shared_bytes, args);
}

#if defined(__CUDACC__)
cudaError_t bfloat16_obstacle() { return obstacle<Mix<InBfloat16>>(); }
#endif

}  // namespace metatasnet::METATASNET_DEVICES
