// A group norm as scale, mean and shift of each channel, from the moments of the tiles of what it reads.
//
//   rstd[u, g] = 1 / sqrt(variance of group g over (channels, time) + 1e-8)
//   affine[u] = (gamma[i] rstd[u, g], mean[u, g], beta[i]);  n(x) = (x - mean) scale + shift
//
// The pass that writes an activation makes the norm of it as well: of the blocks that finish 16 tiles (a segment) the last
// one merges them, of those that merged segments the last one makes the unit's norm. The only thing added atomically is
// the integer that tells who is last. Tiles are merged channel by channel in float64 and in a fixed order, then segments,
// then channels by groups, so results are the same bits whoever that is, and a group may straddle the latent and the
// previous stage's. Behind the last tile a unit waits for ceil(T / 2048) + 16 loads instead of for a launch; merging in the
// readers' prologue would read T / 128 moments of each channel once per tile, which outgrows the activations.
// Bytes per unit and channel: T / 128 moments of 8 written and read, T / 2048 of 16. Source: original model/group_norm.py.
#pragma once

#include "cuda/tile.h"

namespace metatasnet::METATASNET_DEVICES {

constexpr int kGroups = 8;
constexpr double kEpsilon = 1e-8;  // added to the biased variance of a group
constexpr int kSegment = 16;       // tiles

struct ChannelMoments {
  double mean, m2;
};

struct NormArgs {
  int instruments;
  std::int64_t frames;
  // Moments (units / units_of, segments, ld) of up to two sources, side by side.
  const ChannelMoments* segments[2];
  int channels[2], ld[2];
  int units_of[2];      // units that share the source's moments
  const float* weight;  // (instruments, 2, channels): gamma, beta
  int ld_affine;
  float* affine;  // (units, 3, ld_affine); zeros where there is no channel
};

// Where a pass leaves the moments of what it writes.
struct Statistics {
  float* tiles;  // (units, tiles, 2, ld): mean and M2; null: not wanted
  ChannelMoments* segments;  // (units, segments, ld)
  int* arrived;              // (units, segments + 1): zero before the pass and after it
  int blocks;                // that write moments of each tile
  int channels, ld;
  NormArgs norm;  // of these moments; without an affine a launch of Norm makes it
};

METATASNET_BOTH inline int segments_of(std::int64_t frames) { return (tiles_of(frames) + kSegment - 1) / kSegment; }

// Of a block that makes norms.
inline std::size_t norm_shared_bytes(int channels) { return channels * sizeof(ChannelMoments); }

METATASNET_DEVICE double warp_sum(Block& block, double value) {
#pragma unroll
  for (int mask = 1; mask < kWarp; mask *= 2) value += block.shuffle_xor(value, mask);
  return value;
}

METATASNET_DEVICE int frames_from(std::int64_t frames, std::int64_t first, int most) {
  return frames - first < most ? static_cast<int>(frames - first) : most;
}

METATASNET_DEVICE int rows_at(int rows, int tile) { return rows - tile * kTile < kTile ? rows - tile * kTile : kTile; }

METATASNET_DEVICE ChannelMoments merge_segments(Block& block, const NormArgs& args, int source, int unit, int channel) {
  constexpr int kFrames = kSegment * kTile;
  const int segments = segments_of(args.frames), ld = args.ld[source];
  const ChannelMoments* from = args.segments[source] + static_cast<std::int64_t>(unit) * segments * ld + channel;
  double mean = 0.0, m2 = 0.0;
#pragma unroll 4  // loads under way at once
  for (int s = 0; s < segments; ++s) {
    const int rows = frames_from(args.frames, static_cast<std::int64_t>(s) * kFrames, kFrames);
    mean += block.load_written(&from[static_cast<std::int64_t>(s) * ld].mean) * rows;
  }
  mean /= static_cast<double>(args.frames);
#pragma unroll 4
  for (int s = 0; s < segments; ++s) {
    const int rows = frames_from(args.frames, static_cast<std::int64_t>(s) * kFrames, kFrames);
    const ChannelMoments* segment = from + static_cast<std::int64_t>(s) * ld;
    const double d = block.load_written(&segment->mean) - mean;
    m2 += block.load_written(&segment->m2) + d * d * rows;
  }
  return {mean, m2};
}

// By a whole block; a warp takes every (threads / 32)-th group.
template <int threads>
METATASNET_DEVICE void make_norm(Block& block, const NormArgs& args, int unit) {
  const int channels = args.channels[0] + args.channels[1], width = channels / kGroups;
  auto* moments = reinterpret_cast<ChannelMoments*>(block.shared());
  for (int c = block.thread(); c < channels; c += threads) {
    const int s = c < args.channels[0] ? 0 : 1;
    moments[c] = merge_segments(block, args, s, unit / args.units_of[s], s ? c - args.channels[0] : c);
  }
  block.sync();
  const float* weight = args.weight + unit % args.instruments * 2 * channels;
  float* affine = args.affine + static_cast<std::int64_t>(unit) * 3 * args.ld_affine;
#pragma unroll 1
  for (int group = block.warp(); group < kGroups; group += threads / kWarp) {
    const int first = group * width;
    double centre = 0.0, deviations = 0.0;
    for (int c = first + block.lane(); c < first + width; c += kWarp) centre += moments[c].mean;
    centre = warp_sum(block, centre) / width;
    for (int c = first + block.lane(); c < first + width; c += kWarp) {
      const double d = moments[c].mean - centre;
      deviations += moments[c].m2 + static_cast<double>(args.frames) * d * d;
    }
    const double variance = warp_sum(block, deviations) / (static_cast<double>(args.frames) * width);
    const double rstd = 1.0 / std::sqrt(variance + kEpsilon);
    for (int c = first + block.lane(); c < first + width; c += kWarp) {
      affine[c] = static_cast<float>(weight[c] * rstd);
      affine[args.ld_affine + c] = static_cast<float>(centre);
      affine[2 * args.ld_affine + c] = weight[channels + c];
    }
  }
  for (int c = channels + block.thread(); c < args.ld_affine; c += threads) {
    for (int j = 0; j < 3; ++j) affine[j * args.ld_affine + c] = 0.0f;
  }
}

template <int threads>
METATASNET_DEVICE void merge_tiles(Block& block, const Statistics& to, std::int64_t frames, int unit, int segment) {
  const int first = segment * kSegment, ld = to.ld;
  const int rows = frames_from(frames, static_cast<std::int64_t>(first) * kTile, kSegment * kTile);
  const int count = tiles_of(rows);
  const std::int64_t tile = static_cast<std::int64_t>(unit) * tiles_of(frames) + first;
  ChannelMoments* const merged = to.segments + (static_cast<std::int64_t>(unit) * segments_of(frames) + segment) * ld;
#pragma unroll 1
  for (int c = block.thread(); c < to.channels; c += threads) {
    const float* from = to.tiles + tile * 2 * ld + c;
    double mean = 0.0, m2 = 0.0;
#pragma unroll 4  // loads under way at once
    for (int t = 0; t < count; ++t) mean += static_cast<double>(block.load_written(from + 2 * t * ld)) * rows_at(rows, t);
    mean /= rows;
#pragma unroll 4
    for (int t = 0; t < count; ++t) {
      const double d = block.load_written(from + 2 * t * ld) - mean;
      m2 += block.load_written(from + (2 * t + 1) * ld) + d * d * rows_at(rows, t);
    }
    merged[c] = {mean, m2};
  }
}

// Whether this block is the last of `blocks` to come here. What the others wrote before is then visible to it, past the
// first-level cache (Block::load_written).
METATASNET_DEVICE bool is_last(Block& block, int* arrived, int blocks) {
  auto* before = reinterpret_cast<int*>(block.shared());
  block.fence();
  block.sync();
  if (block.thread() == 0) {
    *before = block.increment(arrived);
    if (*before == blocks - 1) *arrived = 0;
  }
  block.sync();
  const bool last = *before == blocks - 1;
  block.fence();
  block.sync();  // the word in shared memory is free again
  return last;
}

// By every block that has written moments of `tile`. Needs norm_shared_bytes(channels) from block.shared() on.
template <int threads>
METATASNET_DEVICE void finish_tile(Block& block, const Statistics& to, std::int64_t frames, int unit, int tile) {
  const int segments = segments_of(frames), segment = tile / kSegment, left = tiles_of(frames) - segment * kSegment;
  int* const arrived = to.arrived + static_cast<std::int64_t>(unit) * (segments + 1);
  if (!is_last(block, arrived + segment, (left < kSegment ? left : kSegment) * to.blocks)) return;
  merge_tiles<threads>(block, to, frames, unit, segment);
  if (!to.norm.affine || !is_last(block, arrived + segments, segments)) return;
  make_norm<threads>(block, to.norm, unit);
}

// Grid: units. The norm of two sources, which no single pass has seen.
struct Norm {
  using Args = NormArgs;
  static constexpr int threads = kGroups * kWarp;
  static constexpr int blocks = 1;

  static METATASNET_DEVICE void run(Block& block, const Args& args) { make_norm<threads>(block, args, block.x()); }
};

}  // namespace metatasnet::METATASNET_DEVICES
