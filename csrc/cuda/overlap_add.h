// The decoder's transposed filters: a product into overlapping frames that are added while they are on chip.
//
//   frame[u, t, j] = sum_c F[j, c] h[u, t, c]                             for j < window, the longest filter
//   signal[u, s] = sum over t of frame[u, t, s + padding - t stride]
//
// A block has the frames that reach into its samples (the first `reach` of them are computed by its neighbour as well)
// and adds each stride-wide part of them in turn, so no sample is written twice at once. Bytes per unit: T C read, T
// stride written; the frames never leave the chip. FLOPs: 2 T C window. Source: Samuel et al. 2020, section 2.3;
// original model/decoder.py.
#pragma once

#include "cuda/pointwise.h"

namespace metatasnet::METATASNET_DEVICES {

struct OverlapAddArgs {
  PointwiseArgs product;  // frames, source[0], weights (window, ld_weights); one instrument
  int window, stride, padding;
  float* signal;  // (units, frames * stride)
};

METATASNET_BOTH inline int reach_of(int window, int stride) { return (window + stride - 1) / stride - 1; }

// Three stages, and the samples for a stride of 80, take 94 KiB: less than the 99 KiB of the GPUs with the least.
using OverlapAddStages = FramesAndWeights<3>;
constexpr int kOverlapAddStageBytes = OverlapAddStages::stages * OverlapAddStages::bytes;

inline std::size_t overlap_add_shared_bytes(int stride) {
  return kOverlapAddStageBytes + sizeof(float) * kTile * stride;
}

// Slots of `stride` samples that a block writes, counted with the padding before the signal; and the number of blocks
// for them.
inline int slots_of(int window, int stride) { return kTile - reach_of(window, stride); }
inline int overlap_add_tiles(std::int64_t frames, int window, int stride) {
  const std::int64_t padding = (window - stride) / 2, slots = frames + (padding + stride - 1) / stride;
  return static_cast<int>((slots + slots_of(window, stride) - 1) / slots_of(window, stride));
}

// Grid: tiles of slots, 1, units.
template <class Arithmetic>
struct OverlapAdd {
  using Args = OverlapAddArgs;
  static constexpr int threads = kThreads;
  static constexpr int blocks = 1;

  static METATASNET_DEVICE void run(Block& block, const Args& args) {
    const int stride = args.stride, parts = reach_of(args.window, stride) + 1, slots = kTile - (parts - 1);
    const std::int64_t first_slot = static_cast<std::int64_t>(block.x()) * slots, first = first_slot - (parts - 1);
    const int unit = block.z(), lane = block.lane();
    auto* samples = reinterpret_cast<float*>(block.shared() + kOverlapAddStageBytes);  // [slots][stride]
    for (int i = block.thread(); i < slots * stride; i += threads) samples[i] = 0.0f;
    const WarpPlace place(block);
    for (int column = 0; column < args.window; column += kColumns) {
      Accumulators sum;
      pointwise_product<Arithmetic, From::frames, OverlapAddStages>(block, args.product, unit, first, column, sum,
                                                                    [](Accumulators& begin) { clear(begin); });
      for (int part = column / stride; part < parts && part * stride < column + kColumns; ++part) {
#pragma unroll
        for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const int row = place.row + kFragmentRows * i + d_row(lane, 2 * h), slot = row + part - (parts - 1);
            if (slot < 0 || slot >= slots) continue;
#pragma unroll
            for (int j = 0; j < kColumnFragments; ++j) {
#pragma unroll
              for (int c = 0; c < 2; ++c) {
                const int tap = column + place.column + kFragmentColumns * j + d_column(lane, c);
                const int at = tap - part * stride;
                if (at >= 0 && at < stride && tap < args.window) samples[slot * stride + at] += sum.v[i][j][2 * h + c];
              }
            }
          }
        }
        block.sync();
      }
    }
    const std::int64_t length = args.product.frames * stride, begin = first_slot * stride - args.padding;
    float* signal = args.signal + unit * length;
    for (int i = block.thread(); i < slots * stride; i += threads) {
      if (begin + i >= 0 && begin + i < length) signal[begin + i] = samples[i];
    }
  }
};

}  // namespace metatasnet::METATASNET_DEVICES
