// The 1x1 convolutions in float32.
#include "cuda/launch_products.h"

namespace metatasnet::METATASNET_DEVICES {

METATASNET_PRODUCTS(InFloat32)

#if defined(__CUDACC__)
cudaError_t float32_obstacle() { return obstacle<Mix<InFloat32>>(); }
#endif

}  // namespace metatasnet::METATASNET_DEVICES
