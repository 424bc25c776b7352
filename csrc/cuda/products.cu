#include "cuda/products.h"

namespace metatasnet::METATASNET_DEVICES {

template <class Arithmetic, From from>
void launch_pointwise(const Stream& stream, std::int64_t units, const PointwiseArgs& args) {
  const Grid grid{tiles_of(args.frames), column_tiles(args.ld_out), units};
  const std::size_t norm = norm_shared_bytes(args.statistics.channels), pipeline = kPipelineBytes;
  launch<Pointwise<Arithmetic, from>>(stream, grid, norm > pipeline ? norm : pipeline, args);
}

template <class Arithmetic>
void launch_mix(const Stream& stream, std::int64_t units, const MixArgs& args) {
  const Grid grid{tiles_of(args.product.frames), column_tiles(args.product.outputs), units};
  launch<Mix<Arithmetic>>(stream, grid, kPipelineBytes, args);
}

void launch_mix_conv(const Stream& stream, std::int64_t units, const MixArgs& args) {
  const Grid grid{tiles_of(args.product.frames), column_tiles(args.product.outputs), units};
  const std::size_t norm = norm_shared_bytes(args.next.outputs), product = kMixConvBytes;
  launch<MixConv>(stream, grid, norm > product ? norm : product, args);
}

void launch_mix_conv_resident(const Stream& stream, std::int64_t units, const MixArgs& args) {
  const std::int64_t tiles = tiles_of(args.product.frames);
  const Grid grid{(tiles + args.tiles - 1) / args.tiles, column_tiles(args.product.outputs), units};
  launch<MixConvResident>(stream, grid, MixConvResident::shared_bytes, args);
}

#define METATASNET_PRODUCTS(Arithmetic)                                                                         \
  template void launch_pointwise<Arithmetic, From::frames>(const Stream&, std::int64_t, const PointwiseArgs&);  \
  template void launch_pointwise<Arithmetic, From::activated_frames>(const Stream&, std::int64_t,               \
                                                                     const PointwiseArgs&);                     \
  template void launch_pointwise<Arithmetic, From::signal>(const Stream&, std::int64_t, const PointwiseArgs&);  \
  template void launch_mix<Arithmetic>(const Stream&, std::int64_t, const MixArgs&);
METATASNET_PRODUCTS(InBfloat16)
METATASNET_PRODUCTS(InTf32)
METATASNET_PRODUCTS(InFloat32)

#if defined(__CUDACC__)
cudaError_t products_obstacle() { return obstacle<Mix<InBfloat16>>(); }
#endif

}  // namespace metatasnet::METATASNET_DEVICES
