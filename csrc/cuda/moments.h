// Mean and sum of squared deviations of each group's part in a block's tile, as the values are stored.
//
// Deviations are taken from the part's first value, then from its mean: constant and silent parts give exactly 0, and a
// mean far from 0 costs no precision. No moment is added atomically, so results are the same bits in every run
// (norm.h).
#pragma once

#include "cuda/norm.h"

namespace metatasnet::METATASNET_DEVICES {

// A tile's values by columns, for the reduction. A lane has four rows of some columns, 8 rows apart; 32 lanes have the
// whole column.
template <int columns>
struct MomentsSpace {
  static constexpr int stride = columns + 9;  // the 16 lanes of a column and of its neighbours are in different banks
  static constexpr int bytes = static_cast<int>(sizeof(float)) * (columns + kWarp * stride);

  float* centre;   // (columns)
  float* partial;  // (32, stride)

  explicit METATASNET_DEVICE MomentsSpace(const Block& block)
      : centre(reinterpret_cast<float*>(block.shared())), partial(centre + columns) {}
};

METATASNET_DEVICE float warp_sum(Block& block, float value) {
#pragma unroll
  for (int mask = 1; mask < kWarp; mask *= 2) value += block.shuffle_xor(value, mask);
  return value;
}

// Writes the moments of part `part` of a tile, which has `columns` columns, and makes the norm where this block is the
// last. A lane has `own` columns of rows `first_row`, `first_row` + 8 and the two `apart` below: value(k, r), in column
// column_of(k), for r from 0 to 3. All threads must have finished reading block.shared().
template <int threads, int columns, int own, int apart, class Column, class Value>
METATASNET_DEVICE void finish_moments(Block& block, const Statistics& to, int unit, int tile, int part, int first_row,
                                      Column column_of, Value value) {
  const NormArgs& norm = to.norm;
  const PartMoments& source = norm.sources[0];
  const MomentsSpace<columns> space(block);
  const int slot = block.warp() % kRowWarps * 8 + block.lane() / 4;  // number of this lane among those of a column
  const int rows = frames_from(norm.frames, static_cast<std::int64_t>(tile) * kTile, kTile);
  constexpr int kWarps = threads / kWarp, kOwn = kGroups / kWarps;
  static_assert(kGroups % kWarps == 0);
  // Columns of this part that belong to the warp's groups: group number warp(), and every kWarps-th after it.
  int begin[kOwn], end[kOwn];
#pragma unroll
  for (int g = 0; g < kOwn; ++g) {
    const int first = (block.warp() + kWarps * g) * norm.width;
    const Overlap overlap(source, part, first, first + norm.width);
    begin[g] = overlap.begin;
    end[g] = overlap.end;
  }
  // Calls body(group, first column, past the last) for each of this warp's groups that has columns in this part.
  const auto each_group = [&](auto body) {
#pragma unroll
    for (int g = 0; g < kOwn; ++g) {
      if (begin[g] < end[g]) body(block.warp() + kWarps * g, begin[g], end[g]);
    }
  };
  // Sum term(k, value) over a group's part; every lane gives its own terms.
  const auto bring = [&](auto term) {
#pragma unroll
    for (int k = 0; k < own; ++k) {
      const float centre = space.centre[column_of(k)];
      float sum = 0.0f;
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        if (first_row + 8 * (r % 2) + apart * (r / 2) < rows) sum += term(value(k, r) - centre);
      }
      space.partial[slot * space.stride + column_of(k)] = sum;
    }
    block.sync();
  };
  const auto total = [&](int from, int past) {
    const float* const row = space.partial + block.lane() * space.stride;
    float sum = 0.0f;
#pragma unroll 4
    for (int c = from; c < past; ++c) sum += row[c];
    return warp_sum(block, sum);
  };

  if (slot == 0) {
#pragma unroll
    for (int k = 0; k < own; ++k) space.centre[column_of(k)] = value(k, 0);
  }
  block.sync();
  each_group([&](int, int from, int past) {
    const float first = space.centre[from];
#pragma unroll 1  // once as a rule, as below
    for (int c = from + 1 + block.lane(); c < past; c += kWarp) space.centre[c] = first;
  });
  block.sync();
  bring([](float d) { return d; });
  each_group([&](int, int from, int past) {
    const float mean = total(from, past) / static_cast<float>(rows * (past - from));
#pragma unroll 1
    for (int c = from + block.lane(); c < past; c += kWarp) space.centre[c] += mean;
  });
  block.sync();
  bring([](float d) { return d * d; });
  Moments* const out = source.of(unit * source.units_of, tiles_of(norm.frames), tile, part);
  each_group([&](int group, int from, int past) {
    const float m2 = total(from, past);
    if (block.lane() > 0) return;
    block.publish(&out[group].mean, space.centre[from]);
    block.publish(&out[group].m2, m2);
  });
  finish_tile<threads>(block, to, unit);
}

// For a pass whose blocks have 32 channels of a tile; the grid is tiles, groups of channels, units. A thread has
// channels 8 (lane % 4) to 8 (lane % 4) + 7 of four frames.
template <int threads>
METATASNET_DEVICE void finish_channels(Block& block, const Statistics& to, const Eight (&y)[4]) {
  const int first_row = block.warp() % kRowWarps * kWarpRows + block.lane() / 4;
  finish_moments<threads, kChannels, 8, kFragmentRows>(
      block, to, block.z(), block.x(), block.y(), first_row, [&](int k) { return block.lane() % 4 * 8 + k; },
      [&](int k, int r) { return y[r].v[k]; });
}

}  // namespace metatasnet::METATASNET_DEVICES
