// Dilated depthwise convolution of the normalised signal, then PReLU, then moments.
//
//   y[u, t, c] = prelu( sum_k w[i, k, c] (scale[u, c] (a[u, t + (k - 1) d, c] - mean[u, c]) + shift[u, c]) )
//                over the taps k for which 0 <= t + (k - 1) d < T      (the original pads after the norm)
// The last block of a unit makes the norm after it (norm.h).
//
// A thread has eight channels of four frames, all taps of which are loaded before the first is used; a warp reads 32
// frames by 32 channels, tap by tap: the second and third reading hit the caches. Bytes per unit: T H read, T H
// written. FLOPs: 6 T H. Memory-bound. Source: Samuel et al. 2020, section 2; original model/mask_tcn.py.
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
  const float* affine;  // (units, 5, ld): the norm, in the taps (norm.h)
  float slope;
  void* out;  // (units, frames, ld_out)
  int ld_out;
  Statistics statistics;
};

// Grid: tiles of frames, groups of 32 channels, units.
template <class Element>
struct Depthwise {
  using Args = DepthwiseArgs;
  static constexpr int threads = kRowWarps * kWarp;
  static constexpr int blocks = 4;
  static constexpr int kTogether = sizeof(Element) == 2 ? 4 : 1;  // frames of a thread that are loaded together

  static METATASNET_DEVICE void run(Block& block, const Args& args) {
    const int unit = block.z(), channel = first_channel(block);
    const std::int64_t begin =
        static_cast<std::int64_t>(block.x()) * kTile + block.warp() * kWarpRows + block.lane() / 4;
    // If all taps are inside the signal, y is sum_k weight[k] a + offset.
    Eight weight[3];
#pragma unroll
    for (int k = 0; k < 3; ++k) weight[k] = load_eight(affine_row(block, args, k));
    const Eight offset = load_eight(affine_row(block, args, 3));
    const std::int64_t rows = static_cast<std::int64_t>(unit) * args.frames, dilation = args.dilation;
    const auto* in = static_cast<const Element*>(args.in) + (rows + begin) * args.ld + channel;
    auto* out = static_cast<Element*>(args.out) + (rows + begin) * args.ld_out + channel;
    Eight y[4];
    const std::int64_t first_row = static_cast<std::int64_t>(block.x()) * kTile;
    if (first_row >= dilation && first_row + kTile + dilation <= args.frames) {
      convolve<true>(block, args, in, out, begin, weight, offset, y);
    } else {
      convolve<false>(block, args, in, out, begin, weight, offset, y);
    }
    finish_channels<threads, Element>(block, args.statistics, y);
  }

 private:
  static METATASNET_DEVICE int first_channel(const Block& block) { return block.y() * kChannels + block.lane() % 4 * 8; }
  static METATASNET_DEVICE const float* affine_row(const Block& block, const Args& args, int row) {
    return args.affine + (std::int64_t{block.z()} * 5 + row) * args.ld + first_channel(block);
  }

  // Frames `begin` + 8 j. `inside`: all taps are inside the signal, too. A tap outside adds neither its frame nor its
  // part of the offset.
  template <bool inside>
  static METATASNET_DEVICE void convolve(const Block& block, const Args& args, const Element* in, Element* out,
                                         std::int64_t begin, const Eight (&weight)[3], const Eight& offset,
                                         Eight (&y)[4]) {
    const std::int64_t dilation = args.dilation;
#pragma unroll
    for (int first = 0; first < 4; first += kTogether) {
      Packed<Element> a[kTogether][3];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
#pragma unroll
        for (int k = 0; k < 3; ++k) {
          const std::int64_t away = 8 * (first + i) + (k - 1) * dilation, at = begin + away;
          if (!inside) a[i][k] = {};
          if (inside || (at >= 0 && at < args.frames)) a[i][k] = load_packed(in + away * args.ld);
        }
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int j = first + i;
        const std::int64_t t = begin + 8 * j;
        y[j] = offset;
        if (!inside && (t < dilation || t + dilation >= args.frames)) {
          const float* const taps = args.taps + block.z() % args.instruments * 3 * args.ld + first_channel(block);
          const Eight constant = load_eight(affine_row(block, args, 4));
#pragma unroll 1
          for (int k = 0; k < 3; k += 2) {
            const std::int64_t at = t + (k - 1) * dilation;
            if (at >= 0 && at < args.frames) continue;
            const Eight tap = load_eight(taps + k * args.ld);
#pragma unroll
            for (int c = 0; c < 8; ++c) y[j].v[c] -= tap.v[c] * constant.v[c];
          }
        }
#pragma unroll
        for (int k = 0; k < 3; ++k) {
          const Eight frame = unpacked(a[i][k]);
#pragma unroll
          for (int c = 0; c < 8; ++c) y[j].v[c] += weight[k].v[c] * frame.v[c];
        }
#pragma unroll
        for (int c = 0; c < 8; c += 2) {
          const Pair pair = as_stored<Element>(prelu(y[j].v[c], args.slope), prelu(y[j].v[c + 1], args.slope));
          y[j].v[c] = pair.v[0];
          y[j].v[c + 1] = pair.v[1];
        }
        if (inside || t < args.frames) store_eight(out + 8 * j * args.ld_out, y[j]);
      }
    }
  }
};

}  // namespace metatasnet::METATASNET_DEVICES
