// A group norm as scale, mean and shift of each channel, from the moments of the parts of what it reads.
//
//   rstd[u, g] = 1 / sqrt(variance of group g over (channels, time) + 1e-8)
//   affine[u] = (gamma[i] rstd[u, g], mean[u, g], beta[i]);  n(x) = (x - mean) scale + shift
//
// Before a depthwise convolution it is the convolution of the normalised signal instead, taps[i] scale, and what they add:
//
//   affine[u] = (w_0, w_1, w_2, sum_k taps[i, k] c, c);  w_k = taps[i, k] scale, c = shift - mean scale
//
// The pass that writes an activation makes the norm of it as well: each block leaves the moments of its part of every
// group (moments.h), and the last block of a unit merges them, in float64 and in a fixed order, so results are the same
// bits whichever block that is. The only thing added atomically is the integer that tells who is last. A group may
// straddle two blocks, or the latent and the previous stage's. Bytes per unit: 64 for each tile and block written, and
// read once. Source: original model/group_norm.py.
#pragma once

#include "cuda/tile.h"

namespace metatasnet::METATASNET_DEVICES {

constexpr int kGroups = 8;
constexpr double kEpsilon = 1e-8;  // added to the biased variance of a group

struct Moments {
  float mean, m2;
};

// Moments of an activation, for each unit, tile of frames, part of the channels, and group.
struct PartMoments {
  Moments* at;   // (units, tiles, parts, kGroups)
  int channels;  // channels of the activation; the first of them is channel `first` of the norm
  int first;
  int columns, parts;  // `parts` blocks write a tile, with `columns` channels each
  int units_of;        // units that share these moments

  METATASNET_DEVICE Moments* of(int unit, int tiles, int tile, int part) const {
    return at + ((static_cast<std::int64_t>(unit / units_of) * tiles + tile) * parts + part) * kGroups;
  }
};

// The columns that channels [begin, end) of the norm have in a part of an activation.
struct Overlap {
  int begin, end;

  METATASNET_DEVICE Overlap(const PartMoments& of, int part, int first, int last) {
    const int part_begin = part * of.columns, part_end = part_begin + of.columns;
    begin = first - of.first > part_begin ? first - of.first - part_begin : 0;
    const int stop = part_end < of.channels ? part_end : of.channels;
    end = (last - of.first < stop ? last - of.first : stop) - part_begin;
  }
  METATASNET_DEVICE int channels() const { return end > begin ? end - begin : 0; }
};

struct NormArgs {
  int instruments;
  std::int64_t frames;
  PartMoments sources[2];  // the two sources, side by side; the second may have no channels
  int width;               // channels of a group
  const float* weight;     // (instruments, 2, channels): gamma, beta
  const float* taps;       // (instruments, 3, ld_affine) of the depthwise convolution that reads the norm; else null
  int ld_affine;
  float* affine;  // (units, rows(), ld_affine); zeros for padding channels. If null, a launch of Norm makes it

  METATASNET_DEVICE int rows() const { return taps ? 5 : 3; }
};

// Destination of the moments of a pass's results.
struct Statistics {
  int* arrived;   // (units): zero before the pass and after it
  bool wanted;
  NormArgs norm;  // the norm of these moments, which are its first source
};

METATASNET_DEVICE double warp_sum(Block& block, double value) {
#pragma unroll
  for (int mask = 1; mask < kWarp; mask *= 2) value += block.shuffle_xor(value, mask);
  return value;
}

METATASNET_DEVICE int frames_from(std::int64_t frames, std::int64_t first, int most) {
  return frames - first < most ? static_cast<int>(frames - first) : most;
}

// Calls body(moments, count) for this lane's part of the moments of channels [first, last) of a unit.
template <class Body>
METATASNET_DEVICE void each_part(Block& block, const NormArgs& args, int unit, int first, int last, Body body) {
  const int tiles = tiles_of(args.frames);
#pragma unroll 1
  for (int s = 0; s < 2; ++s) {
    const PartMoments& source = args.sources[s];
#pragma unroll 1
    for (int part = 0; part < source.parts; ++part) {
      const int channels = Overlap(source, part, first, last).channels();
      if (channels == 0) continue;
      const Moments* from = source.of(unit, tiles, 0, part) + first / args.width;
#pragma unroll 4  // loads under way at once
      for (int t = block.lane(); t < tiles; t += kWarp) {
        const Moments* at = from + static_cast<std::int64_t>(t) * source.parts * kGroups;
        const int rows = frames_from(args.frames, static_cast<std::int64_t>(t) * kTile, kTile);
        body(Moments{block.load_written(&at->mean), block.load_written(&at->m2)}, rows * channels);
      }
    }
  }
}

// Called by a whole block; a warp takes every (threads / 32)-th group.
template <int threads>
METATASNET_DEVICE void make_norm(Block& block, const NormArgs& args, int unit) {
  const int width = args.width, channels = kGroups * width;
  const double count = static_cast<double>(args.frames) * width;
  const float* weight = args.weight + unit % args.instruments * 2 * channels;
  float* affine = args.affine + static_cast<std::int64_t>(unit) * args.rows() * args.ld_affine;
#pragma unroll 1
  for (int group = block.warp(); group < kGroups; group += threads / kWarp) {
    const int first = group * width, last = first + width;
    double mean = 0.0, m2 = 0.0;
    each_part(block, args, unit, first, last, [&](Moments m, int n) { mean += static_cast<double>(m.mean) * n; });
    mean = warp_sum(block, mean) / count;
    each_part(block, args, unit, first, last, [&](Moments m, int n) {
      const double d = m.mean - mean;
      m2 += m.m2 + d * d * n;
    });
    const double rstd = 1.0 / std::sqrt(warp_sum(block, m2) / count + kEpsilon);
    for (int c = first + block.lane(); c < last; c += kWarp) {
      const float scale = static_cast<float>(weight[c] * rstd), shift = weight[channels + c];
      if (args.taps) {
        const float constant = shift - static_cast<float>(mean) * scale;
        float offset = 0.0f;
        for (int k = 0; k < 3; ++k) {
          const float tap = args.taps[(unit % args.instruments * 3 + k) * args.ld_affine + c];
          affine[k * args.ld_affine + c] = tap * scale;
          offset += tap * constant;
        }
        affine[3 * args.ld_affine + c] = offset;
        affine[4 * args.ld_affine + c] = constant;
      } else {
        affine[c] = scale;
        affine[args.ld_affine + c] = static_cast<float>(mean);
        affine[2 * args.ld_affine + c] = shift;
      }
    }
  }
  for (int c = channels + block.thread(); c < args.ld_affine; c += threads) {
    for (int j = 0; j < args.rows(); ++j) affine[j * args.ld_affine + c] = 0.0f;
  }
}

// Return true in the last of `blocks` blocks that arrives. It can then read the values that the other blocks wrote before,
// with Block::load_written, which bypasses the first-level cache.
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
  return last;
}

// Called by every block that has written moments of a tile.
template <int threads>
METATASNET_DEVICE void finish_tile(Block& block, const Statistics& to, int unit) {
  if (!to.norm.affine) return;
  const int blocks = tiles_of(to.norm.frames) * to.norm.sources[0].parts;
  if (is_last(block, to.arrived + unit, blocks)) make_norm<threads>(block, to.norm, unit);
}

// Makes the norm of two sources if no single pass has written both. The grid has one block for each unit.
struct Norm {
  using Args = NormArgs;
  static constexpr int threads = kGroups * kWarp;
  static constexpr int blocks = 1;

  static METATASNET_DEVICE void run(Block& block, const Args& args) { make_norm<threads>(block, args, block.x()); }
};

}  // namespace metatasnet::METATASNET_DEVICES
