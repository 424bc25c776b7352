// The 1x1 convolutions in tf32.
#include "cuda/launch_products.h"

namespace metatasnet::METATASNET_DEVICES {

METATASNET_PRODUCTS(InTf32)

#if defined(__CUDACC__)
cudaError_t tf32_obstacle() { return obstacle<Mix<InTf32>>(); }
#endif

}  // namespace metatasnet::METATASNET_DEVICES
