// Definitions for products.h; each translation unit that includes them compiles one arithmetic.
#pragma once

#include "cuda/products.h"

namespace metatasnet::METATASNET_DEVICES {

template <class Arithmetic, From from>
void launch_pointwise(const Stream& stream, std::int64_t units, const PointwiseArgs& args) {
  const Grid grid{tiles_of(args.frames), column_tiles(args.ld_out), units};
  launch<Pointwise<Arithmetic, from>>(stream, grid, kPipelineBytes, args);
}

template <class Arithmetic>
void launch_mix(const Stream& stream, std::int64_t units, const MixArgs& args) {
  const Grid grid{tiles_of(args.product.frames), column_tiles(args.product.outputs), units};
  launch<Mix<Arithmetic>>(stream, grid, kPipelineBytes, args);
}

}  // namespace metatasnet::METATASNET_DEVICES

#define METATASNET_PRODUCTS(Arithmetic)                                                                           \
  template void launch_pointwise<Arithmetic, From::frames>(const Stream&, std::int64_t, const PointwiseArgs&);    \
  template void launch_pointwise<Arithmetic, From::activated_frames>(const Stream&, std::int64_t,                 \
                                                                     const PointwiseArgs&);                       \
  template void launch_pointwise<Arithmetic, From::signal>(const Stream&, std::int64_t, const PointwiseArgs&);    \
  template void launch_pointwise<Arithmetic, From::frames_and_share>(const Stream&, std::int64_t,                 \
                                                                     const PointwiseArgs&);                       \
  template void launch_mix<Arithmetic>(const Stream&, std::int64_t, const MixArgs&);
