// MixConv with mixing weights that stay in shared memory, where two blocks of 110 KiB fit on a multiprocessor: H100 and later.
//
// A block goes through several tiles of its unit. Its 160 rows of res_out or skip_out are read once, and the next tile's frames
// are under way while this one's results are written. The same sums in the same order as MixConv: the same bits.
//
// Bytes as in mix.h, but of the weights: of 150 KiB for each 128 frames and unit at B = H = 160 (res_out, skip_out, conv1d),
// the first 100 are read once for all tiles of a block. Shared memory: two stages of conv1d's weights, 20 KiB; the tile,
// first of h and then of x, 40 KiB; the weights that stay, 50 KiB. FLOPs as in mix.h.
#pragma once

#include "cuda/mix.h"

namespace metatasnet::METATASNET_DEVICES {

struct MixConvResident {
  using Args = MixArgs;
  using Convolution = WeightsAlone<2>;
  static constexpr int threads = kThreads;
  static constexpr int blocks = 2;
  static constexpr int kTileAt = Convolution::stages * Convolution::bytes, kWeightsAt = kTileAt + kTileBytes;
  static constexpr int kIndexAt = kWeightsAt + kTileBytes / kFrameBytes * kWeightBytes;
  static constexpr int shared_bytes = kIndexAt + 16;
  static_assert(kTileAt >= static_cast<int>(sizeof(Moments)) * kRowWarps * kColumns);  // moments lie in the stages

  static METATASNET_DEVICE void run(Block& block, const Args& args) {
    const PointwiseArgs& product = args.product;
    char *const stages = block.shared(), *const tile = stages + kTileAt, *const weights = stages + kWeightsAt;
    const auto chunks = [&] { return product.ld_weights * static_cast<int>(sizeof(Bfloat16)) / kChunkBytes; };
    // Which tile it is lies in shared memory: beside the accumulators there is no register for it.
    auto* const current = reinterpret_cast<volatile int*>(stages + kIndexAt);
    const auto index = [&] { return static_cast<int>(*current); };
    const auto move_to = [&](int which) {
      block.sync();
      if (block.thread() == 0) *current = which;
      block.sync();
    };
    const auto ends_here = [&] {
      return index() + 1 == (block.x() + 1) * args.tiles || index() + 1 == tiles_of(product.frames);
    };
    const auto load_next = [&] {
      if (ends_here()) return;
      block.forget();  // nor for addresses of copies that were made before
      for (int chunk = 0; chunk < chunks(); ++chunk) load_chunk(block, product, tile, index() + 1, chunk);
    };

    move_to(block.x() * args.tiles);
    for (int chunk = 0; chunk < chunks(); ++chunk) {
      load_weights<InBfloat16>(block, weights + chunk * kWeightBytes, weights_of<Bfloat16>(product, block.z()),
                               product.ld_weights, block.y() * kColumns, product.outputs, chunk);
      load_chunk(block, product, tile, index(), chunk);
    }
    for (;;) {
      const int first_output = block.y() * kColumns;
      const WarpPlace place(block);
      Accumulators sum;
      clear(sum);
      multiply_resident<InBfloat16>(block, tile, weights, chunks(),
                                    std::int64_t{index()} * kTile + place.row < product.frames &&
                                        first_output + place.column < product.outputs,
                                    sum);
      if (first_output > 0) {
        load_next();
        add_outputs(block, args, sum, block.z(), std::int64_t{index()} * kTile, first_output,
                    [](int, int, float, float) {});
      } else {
        convolve_tile<Convolution>(block, args, index, tile, stages, sum, load_next);
      }
      if (ends_here()) return;
      move_to(index() + 1);
    }
  }

 private:
  // A chunk of a tile's frames, committed.
  static METATASNET_DEVICE void load_chunk(Block& block, const PointwiseArgs& product, char* tile, int index,
                                           int chunk) {
    load_frames<InBfloat16>(block, tile + chunk * kFrameBytes, product, block.z(), std::int64_t{index} * kTile, chunk);
    block.commit();
  }
};

}  // namespace metatasnet::METATASNET_DEVICES
