// Kernels for Hopper: the 1x1 convolutions of frames by wgmma, and all blocks of a masking network in one launch.
#include "cuda/overlap_add.h"
#include "cuda/products.h"

namespace metatasnet::METATASNET_DEVICES {

namespace {

// The operands of a product, with tensor maps; only sources that are activated may be shared by instruments, or be two.
template <class Pipeline>
WgmmaArgs operands(std::int64_t units, const PointwiseArgs& args, bool activates) {
  constexpr int kBytes = sizeof(Bfloat16);
  const std::int64_t matrix = std::int64_t{args.outputs} * args.ld_weights;
  const int instruments = args.instruments;
  WgmmaArgs all{};
  all.product = args;
  all.second = activates ? padded(args.source[0].channels) : args.ld_weights;
  for (int i = 0; i < (all.second < args.ld_weights ? 2 : 1); ++i) {
    const Frames& source = args.source[i];
    const bool shared = all.shared[i] = activates && source.instrument == 0;
    const std::int64_t unit = instruments > 1 && !shared ? source.instrument : source.item;
    if (!shared && units > instruments && source.item != instruments * unit) {
      throw std::logic_error("Units are not evenly apart.");
    }
    all.frames[i] = tensor_map({source.data, source.channels, args.frames, shared ? units / instruments : units,
                                source.row * kBytes, unit * kBytes, kTile});
  }
  all.matrices_item = static_cast<int>(args.weights_item / matrix);
  all.matrices_instrument = static_cast<int>(args.weights_instrument / matrix);
  const std::int64_t last =
      (units / instruments - 1) * all.matrices_item + std::int64_t{instruments - 1} * all.matrices_instrument;
  all.weights = tensor_map({args.weights, args.ld_weights, args.outputs, last + 1, std::int64_t{args.ld_weights} * kBytes,
                            matrix * kBytes, Pipeline::part_rows});
  return all;
}

// Units as one whose frames follow each other, where all have the same weights and nothing is counted within a unit: without an
// empty tile for each odd number of tiles.
void join(std::int64_t& units, PointwiseArgs& args) {
  const Frames& source = args.source[0];
  const bool same = args.instruments == 1 && args.weights_item == 0 && args.bias_item == 0 && !args.share;
  if (!same || args.statistics.wanted || source.item != args.frames * source.row) return;
  args.frames *= units;
  units = 1;
}

std::int64_t clusters(int tiles, int cluster) { return (tiles + cluster - 1) / cluster * cluster; }

}  // namespace

template <From from>
void launch_wgmma(const Stream& stream, std::int64_t units, const PointwiseArgs& product) {
  using Kernel = PointwiseWgmma<from>;
  PointwiseArgs args = product;
  if (from == From::frames) join(units, args);
  const Grid grid{clusters(tiles_of(args.frames), Kernel::cluster), column_tiles(args.ld_out), units};
  launch<Kernel>(stream, grid, Kernel::shared_bytes, operands<typename Kernel::Pipeline>(units, args, Kernel::activates));
}

void launch_overlap_add_wgmma(const Stream& stream, std::int64_t units, const OverlapAddArgs& args) {
  using Kernel = OverlapAddWgmma;
  const Overlapping& overlap = args.overlap;
  const int tiles = overlap_add_tiles(overlap.frames, overlap.window, overlap.stride);
  const Grid grid{clusters(tiles, Kernel::cluster), 1, units};
  launch<Kernel>(stream, grid, Kernel::shared_bytes(overlap.window, overlap.stride),
                 {operands<Kernel::Pipeline>(units, args.product, false), overlap});
}

template void launch_wgmma<From::frames>(const Stream&, std::int64_t, const PointwiseArgs&);
template void launch_wgmma<From::activated_frames>(const Stream&, std::int64_t, const PointwiseArgs&);
template void launch_wgmma<From::frames_and_share>(const Stream&, std::int64_t, const PointwiseArgs&);

int persistent_units(const Stream& stream, const Shares& shares) {
  return shares.blocks ? blocks_at_once<PersistentBlocks>(stream, PersistentBlocks::shared_bytes) / shares.blocks : 0;
}

void launch_persistent(const Stream& stream, std::int64_t units, int together, const Shares& shares,
                       const PersistentArgs& numbers, const void* conv, const void* mix) {
  PersistentArgs args = numbers;
  const auto map = [&](const void* data, int channels, int rows, int blocks) {
    const std::int64_t bytes = padded(channels) * std::int64_t{sizeof(Bfloat16)};
    return tensor_map({data, padded(channels), rows, std::int64_t{blocks} * args.instruments, bytes, rows * bytes, kColumns});
  };
  args.conv = map(conv, args.B, args.H, args.blocks);
  args.mix = map(mix, args.H, args.B, args.blocks - 1);
  args.rows = shares.rows;
  args.shares = shares.blocks;
  for (std::int64_t first = 0; first < units; first += together) {
    args.first_unit = static_cast<int>(first);
    const std::int64_t here = units - first < together ? units - first : together;
    launch<PersistentBlocks>(stream, {shares.blocks, 1, here}, PersistentBlocks::shared_bytes, args);
  }
}

#if defined(__CUDACC__)
cudaError_t wgmma_obstacle() { return obstacle<PointwiseWgmma<From::frames>>(); }
#endif

}  // namespace metatasnet::METATASNET_DEVICES
