// A group norm as scale, mean and shift of each channel, from the moments of its tiles.
//
//   rstd[u, g] = 1 / sqrt(variance of group g over (channels, time) + 1e-8)
//   affine[u] = (gamma[i] rstd[u, g], mean[u, g], beta[i]);  n(x) = (x - mean) scale + shift
//
// Tiles are merged channel by channel in float64 and in a fixed order, then channels by groups, so a group may straddle
// the latent and the previous stage's. Source: original model/group_norm.py.
#pragma once

#include "cuda/tile.h"

namespace metatasnet::METATASNET_DEVICES {

constexpr int kGroups = 8;
constexpr double kEpsilon = 1e-8;  // added to the biased variance of a group

struct NormArgs {
  std::int64_t frames;
  // Moments (units / units_of, tiles, 2, ld) of up to two sources, side by side.
  const float* partials[2];
  int channels[2], ld[2];
  int units_of[2];      // units that share the source's moments
  const float* weight;  // (4, 2, channels): gamma, beta
  int ld_affine;
  float* affine;  // (units, 3, ld_affine); zeros where there is no channel
};

struct ChannelMoments {
  double mean, m2;
};

inline std::size_t norm_shared_bytes(int channels) { return channels * sizeof(ChannelMoments); }

METATASNET_DEVICE double warp_sum(Block& block, double value) {
#pragma unroll
  for (int mask = 1; mask < kWarp; mask *= 2) value += block.shuffle_xor(value, mask);
  return value;
}

// Grid: units. One warp for each group.
struct Norm {
  using Args = NormArgs;
  static constexpr int threads = kGroups * kWarp;
  static constexpr int blocks = 1;

  static METATASNET_DEVICE void run(Block& block, const Args& args) {
    const int unit = block.x(), channels = args.channels[0] + args.channels[1];
    auto* moments = reinterpret_cast<ChannelMoments*>(block.shared());
    for (int c = block.thread(); c < channels; c += threads) {
      const int s = c < args.channels[0] ? 0 : 1;
      moments[c] = merge_tiles(args, s, unit / args.units_of[s], s ? c - args.channels[0] : c);
    }
    block.sync();
    const int width = channels / kGroups, first = block.warp() * width;
    double centre = 0.0, deviations = 0.0;
    for (int c = first + block.lane(); c < first + width; c += kWarp) centre += moments[c].mean;
    centre = warp_sum(block, centre) / width;
    for (int c = first + block.lane(); c < first + width; c += kWarp) {
      const double d = moments[c].mean - centre;
      deviations += moments[c].m2 + static_cast<double>(args.frames) * d * d;
    }
    const double variance = warp_sum(block, deviations) / (static_cast<double>(args.frames) * width);
    const double rstd = 1.0 / std::sqrt(variance + kEpsilon);
    const float* weight = args.weight + unit % kInstruments * 2 * channels;
    float* affine = args.affine + static_cast<std::int64_t>(unit) * 3 * args.ld_affine;
    for (int c = first + block.lane(); c < first + width; c += kWarp) {
      affine[c] = static_cast<float>(weight[c] * rstd);
      affine[args.ld_affine + c] = static_cast<float>(centre);
      affine[2 * args.ld_affine + c] = weight[channels + c];
    }
    for (int c = channels + block.thread(); c < args.ld_affine; c += threads) {
      for (int j = 0; j < 3; ++j) affine[j * args.ld_affine + c] = 0.0f;
    }
  }

  static METATASNET_DEVICE ChannelMoments merge_tiles(const Args& args, int source, int unit, int channel) {
    const int tiles = tiles_of(args.frames), ld = args.ld[source];
    const float* from = args.partials[source] + static_cast<std::int64_t>(unit) * tiles * 2 * ld + channel;
    double mean = 0.0, m2 = 0.0;
    for (int t = 0; t < tiles; ++t) mean += from[static_cast<std::int64_t>(t) * 2 * ld] * rows_of(args.frames, t);
    mean /= static_cast<double>(args.frames);
    for (int t = 0; t < tiles; ++t) {
      const float* tile = from + static_cast<std::int64_t>(t) * 2 * ld;
      const double d = tile[0] - mean;
      m2 += tile[ld] + d * d * rows_of(args.frames, t);
    }
    return {mean, m2};
  }

  static METATASNET_DEVICE double rows_of(std::int64_t frames, int tile) {
    const std::int64_t left = frames - static_cast<std::int64_t>(tile) * kTile;
    return static_cast<double>(left < kTile ? left : kTile);
  }
};

}  // namespace metatasnet::METATASNET_DEVICES
