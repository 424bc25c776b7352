// Moments of the input of the masking network's first norm: prelu(source), rounded as the first product reads it.
//
//   statistics of round(prelu(a[u, t, c]))
//
// Bytes per unit: T C read. The instruments share the mixture's latent, whose moments are computed once.
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
    const auto* source = static_cast<const Element*>(args.source.data) +
                         unit / args.instruments * args.source.item +
                         unit % args.instruments * args.source.instrument + channel;
    Eight y[4] = {};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const std::int64_t t = begin + block.warp() * kWarpRows + 8 * j + lane / 4;
      if (t >= args.frames || channel >= args.source.channels) continue;
      y[j] = load_eight(source + t * args.source.row);
#pragma unroll
      for (int c = 0; c < 8; ++c) y[j].v[c] = Arithmetic::rounded(prelu(y[j].v[c], args.slope));
    }
    finish_channels<threads>(block, args.statistics, y);
  }
};

}  // namespace metatasnet::METATASNET_DEVICES
