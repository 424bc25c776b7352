// Moments of what the masking network's first norm sees: prelu(source), rounded as the first product reads it.
//
//   statistics of round(prelu(a[u, t, c]))
//
// Bytes per unit: T C read. The four instruments share the mixture's latent, whose moments are taken once.
#pragma once

#include "cuda/pointwise.h"

namespace metatasnet::METATASNET_DEVICES {

struct SourceMomentsArgs {
  int instruments;
  std::int64_t frames;
  Frames source;
  int ld;
  float slope;
  Statistics statistics;
};

// Grid: tiles of frames, groups of 32 channels, units.
template <class Arithmetic>
struct SourceMoments {
  using Args = SourceMomentsArgs;
  static constexpr int threads = kRowWarps * kWarp;
  static constexpr int blocks = 4;

  static METATASNET_DEVICE void run(Block& block, const Args& args) {
    using Element = typename Arithmetic::Element;
    const int unit = block.z(), lane = block.lane(), part = lane % 4;
    const int channel = block.y() * kChannels + part * 8;
    const std::int64_t begin = static_cast<std::int64_t>(block.x()) * kTile;
    const int left = args.frames - begin < kTile ? static_cast<int>(args.frames - begin) : kTile;
    const int rows = left - block.warp() * kWarpRows;
    const auto* source = static_cast<const Element*>(args.source.data) +
                         unit / args.instruments * args.source.item +
                         unit % args.instruments * args.source.instrument + channel;
    auto* moments = reinterpret_cast<Moments*>(block.shared());  // [kRowWarps][kChannels]
    Eight y[4] = {};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const std::int64_t t = begin + block.warp() * kWarpRows + 8 * j + lane / 4;
      if (t >= args.frames || channel >= args.source.channels) continue;
      y[j] = load_eight(source + t * args.source.row);
#pragma unroll
      for (int c = 0; c < 8; ++c) y[j].v[c] = Arithmetic::rounded(prelu(y[j].v[c], args.slope));
    }
    if (rows > 0) {
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        const float values[4] = {y[0].v[c], y[1].v[c], y[2].v[c], y[3].v[c]};
        const Moments m = column_moments(block, values, rows);
        if (lane < 4) moments[block.warp() * kChannels + part * 8 + c] = m;
      }
    }
    block.sync();
    if (block.thread() < kChannels) {
      const Moments m = merge_warps(moments + block.thread(), kChannels, left);
      const std::int64_t tile = static_cast<std::int64_t>(unit) * tiles_of(args.frames) + block.x();
      float* to = args.statistics.tiles + tile * 2 * args.ld + block.y() * kChannels + block.thread();
      to[0] = m.mean;
      to[args.ld] = m.m2;
    }
    finish_tile<threads>(block, args.statistics, args.frames, unit, block.x());
  }
};

}  // namespace metatasnet::METATASNET_DEVICES
