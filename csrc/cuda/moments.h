// Mean and sum of squared deviations of a tile's columns, as the values are stored; merged in a fixed order.
//
// Deviations are taken from the column's first value: constant and silent columns give exactly 0, and a mean far from 0
// costs no precision. No moment is added atomically, so results are the same bits in every run (norm.h).
#pragma once

#include "cuda/norm.h"

namespace metatasnet::METATASNET_DEVICES {

struct Moments {
  float mean, m2;
};

// The sum over the eight lanes that hold the same column: those that differ in the bits of lane / 4.
METATASNET_DEVICE float column_sum(Block& block, float value) {
  value += block.shuffle_xor(value, 4);
  value += block.shuffle_xor(value, 8);
  return value + block.shuffle_xor(value, 16);
}

// Of one column in a warp's 32 rows, of which the first `left` (at least one) exist. values[j] is row 8 j + lane / 4.
METATASNET_DEVICE Moments column_moments(Block& block, const float (&values)[4], int left) {
  const int rows = left < kWarpRows ? left : kWarpRows;
  const float first = block.shuffle(values[0], block.lane() % 4);
  float deviations[4], sum = 0.0f, squares = 0.0f;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    deviations[j] = values[j] - first;
    if (8 * j + block.lane() / 4 < rows) sum += deviations[j];
  }
  const float mean = column_sum(block, sum) / static_cast<float>(rows);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float d = deviations[j] - mean;
    if (8 * j + block.lane() / 4 < rows) squares += d * d;
  }
  return {first + mean, column_sum(block, squares)};
}

// A column of the tile from its warps' moments (warp w at moments[w * stride]), of which `rows` rows count in all.
METATASNET_DEVICE Moments merge_warps(const Moments* moments, int stride, int rows) {
  Moments all = moments[0];
  float count = static_cast<float>(rows < kWarpRows ? rows : kWarpRows);
#pragma unroll
  for (int w = 1; w < kRowWarps; ++w) {
    const int left = rows - w * kWarpRows;
    if (left <= 0) break;
    const Moments next = moments[w * stride];
    const float more = static_cast<float>(left < kWarpRows ? left : kWarpRows);
    const float total = count + more, difference = next.mean - all.mean, share = more / total;
    all.mean += difference * share;
    all.m2 += next.m2 + difference * difference * count * share;
    count = total;
  }
  return all;
}

// Of a pass whose blocks have 32 channels of a tile: leaves their moments, and makes the norm (norm.h) where it is the last to.
// A thread has channels 8 (lane % 4) to 8 (lane % 4) + 7 of frames 32 warp + 8 j + lane / 4; the grid is tiles, groups of
// channels, units.
template <int threads>
METATASNET_DEVICE void finish_channels(Block& block, const Statistics& to, std::int64_t frames, const Eight (&y)[4]) {
  const int lane = block.lane(), unit = block.z();
  const int left = frames_from(frames, static_cast<std::int64_t>(block.x()) * kTile, kTile);
  const int rows = left - block.warp() * kWarpRows;
  auto* moments = reinterpret_cast<Moments*>(block.shared());  // [kRowWarps][kChannels]
  if (rows > 0) {
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const float values[4] = {y[0].v[c], y[1].v[c], y[2].v[c], y[3].v[c]};
      const Moments m = column_moments(block, values, rows);
      if (lane < 4) moments[block.warp() * kChannels + lane * 8 + c] = m;
    }
  }
  block.sync();
  if (block.thread() < kChannels) {
    const Moments m = merge_warps(moments + block.thread(), kChannels, left);
    const std::int64_t tile = static_cast<std::int64_t>(unit) * tiles_of(frames) + block.x();
    float* at = to.tiles + tile * 2 * to.ld + block.y() * kChannels + block.thread();
    at[0] = m.mean;
    at[to.ld] = m.m2;
  }
  finish_tile<threads>(block, to, frames, unit, block.x());
}

}  // namespace metatasnet::METATASNET_DEVICES
