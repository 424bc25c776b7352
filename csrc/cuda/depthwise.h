// Dilated depthwise convolution of the normalised signal, then PReLU, then moments.
//
//   y[u, t, c] = prelu( sum_k w[i, k, c] (scale[u, c] (a[u, t + (k - 1) d, c] - mean[u, c]) + shift[u, c]) )
//                over the taps k for which 0 <= t + (k - 1) d < T      (the original pads after the norm)
// The last block of a unit makes the norm behind it (norm.h).
//
// A thread has eight channels of four frames; a warp reads 32 frames by 32 channels, tap by tap: the second and third
// reading hit the caches. Bytes per unit: T H read, T H written. FLOPs: 6 T H. Memory-bound.
// Source: Samuel et al. 2020, section 2; original model/mask_tcn.py.
#pragma once

#include "cuda/moments.h"

namespace metatasnet::METATASNET_DEVICES {

struct DepthwiseArgs {
  int instruments;
  std::int64_t frames;
  int channels, ld;
  int dilation;
  const void* in;       // (units, frames, ld)
  const float* taps;    // (instruments, 3, ld)
  const float* affine;  // (units, 3, ld): scale, mean, shift
  float slope;
  void* out;  // (units, frames, ld)
  Statistics statistics;
};

// Grid: tiles of frames, groups of 32 channels, units.
template <class Element>
struct Depthwise {
  using Args = DepthwiseArgs;
  static constexpr int threads = kRowWarps * kWarp;
  static constexpr int blocks = 4;

  static METATASNET_DEVICE void run(Block& block, const Args& args) {
    const int unit = block.z(), lane = block.lane(), part = lane % 4;
    const int channel = block.y() * kChannels + part * 8;
    const std::int64_t begin = static_cast<std::int64_t>(block.x()) * kTile;
    const float* taps = args.taps + unit % args.instruments * 3 * args.ld + channel;
    const float* affine = args.affine + static_cast<std::int64_t>(unit) * 3 * args.ld + channel;
    const Eight scale = load_eight(affine), mean = load_eight(affine + args.ld), shift = load_eight(affine + 2 * args.ld);
    Eight weight[3], offset[3];
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      const Eight tap = load_eight(taps + k * args.ld);
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        weight[k].v[c] = tap.v[c] * scale.v[c];
        offset[k].v[c] = tap.v[c] * (shift.v[c] - mean.v[c] * scale.v[c]);
      }
    }
    const std::int64_t base = static_cast<std::int64_t>(unit) * args.frames * args.ld + channel;
    const auto* in = static_cast<const Element*>(args.in) + base;
    auto* out = static_cast<Element*>(args.out) + base;
    Eight y[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const std::int64_t t = begin + block.warp() * kWarpRows + 8 * j + lane / 4;
#pragma unroll
      for (int c = 0; c < 8; ++c) y[j].v[c] = 0.0f;
      if (t >= args.frames) continue;
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        const std::int64_t at = t + static_cast<std::int64_t>(k - 1) * args.dilation;
        if (at < 0 || at >= args.frames) continue;
        const Eight a = load_eight(in + at * args.ld);
#pragma unroll
        for (int c = 0; c < 8; ++c) y[j].v[c] += weight[k].v[c] * a.v[c] + offset[k].v[c];
      }
#pragma unroll
      for (int c = 0; c < 8; ++c) y[j].v[c] = to_float(stored<Element>(prelu(y[j].v[c], args.slope)));
      store_eight(out + t * args.ld, y[j]);
    }
    finish_channels<threads>(block, args.statistics, args.frames, y);
  }
};

}  // namespace metatasnet::METATASNET_DEVICES
