// The 1x1 convolutions in tf32; those of the spectrogram in split tf32.
#include "cuda/launch_products.h"

namespace metatasnet::METATASNET_DEVICES {

METATASNET_PRODUCTS(InTf32)

template void launch_pointwise<InSplitTf32, From::frames>(const Stream&, std::int64_t, const PointwiseArgs&);

#if defined(__CUDACC__)
cudaError_t tf32_obstacle() { return obstacle<Mix<InTf32>>(); }
#endif

}  // namespace metatasnet::METATASNET_DEVICES
