// The 1x1 convolutions of frames in bfloat16 by wgmma, for Hopper.
#include "cuda/products.h"
#include "cuda/wgmma.h"

namespace metatasnet::METATASNET_DEVICES {

template <From from>
void launch_wgmma(const Stream& stream, std::int64_t units, const PointwiseArgs& args) {
  using Kernel = PointwiseWgmma<from>;
  const Frames& source = args.source[0];
  constexpr int kBytes = sizeof(Bfloat16);
  const std::int64_t matrix = std::int64_t{args.outputs} * args.ld_weights;
  const int instruments = args.instruments;
  WgmmaArgs all{};
  all.product = args;
  const std::int64_t unit = instruments > 1 ? source.instrument : source.item;
  if (units > instruments && source.item != instruments * unit) throw std::logic_error("Units are not evenly apart.");
  all.frames = tensor_map({source.data, source.channels, args.frames, units, source.row * kBytes, unit * kBytes, kTile});
  all.matrices_item = static_cast<int>(args.weights_item / matrix);
  all.matrices_instrument = static_cast<int>(args.weights_instrument / matrix);
  const std::int64_t last =
      (units / instruments - 1) * all.matrices_item + std::int64_t{instruments - 1} * all.matrices_instrument;
  all.weights = tensor_map({args.weights, args.ld_weights, args.outputs, last + 1, std::int64_t{args.ld_weights} * kBytes,
                            matrix * kBytes, Kernel::part_rows});
  const int tiles = tiles_of(args.frames);
  const Grid grid{(tiles + Kernel::cluster - 1) / Kernel::cluster * Kernel::cluster, column_tiles(args.ld_out), units};
  launch<Kernel>(stream, grid, Kernel::shared_bytes, all);
}

template void launch_wgmma<From::frames>(const Stream&, std::int64_t, const PointwiseArgs&);
template void launch_wgmma<From::frames_and_share>(const Stream&, std::int64_t, const PointwiseArgs&);

#if defined(__CUDACC__)
cudaError_t wgmma_obstacle() { return obstacle<PointwiseWgmma<From::frames>>(); }
#endif

}  // namespace metatasnet::METATASNET_DEVICES
