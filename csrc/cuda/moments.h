// Mean and sum of squared deviations of a tile's columns, as the values are stored; merged in a fixed order.
//
// Deviations are taken from the column's first value: constant and silent columns give exactly 0, and a mean far from 0
// costs no precision. No moment is added atomically, so results are the same bits in every run (norm.h).
#pragma once

#include "cuda/tile.h"

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

}  // namespace metatasnet::METATASNET_DEVICES
