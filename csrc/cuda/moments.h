// Mean and sum of squared deviations of each group's part in a block's tile, as the values are stored.
//
// Deviations are taken from the part's first value, then from its mean: constant and silent parts give exactly 0, and a
// mean far from 0 costs no precision. No moment is added atomically, so results are the same bits in every run
// (norm.h).
//
// Values that are stored in bfloat16 are added up on tensor cores instead, from shared memory: the sums of channels are products with
// ones, those of squares the diagonal of a^T a. Products of bfloat16 are exact, and so are sums of one value over up to 256
// frames, so that constant and silent parts give exactly 0 too. Tensor cores cut sums: of 128 squares to 2^-20 of their size, less than
// the square of bfloat16's roundings, 2^-18, so a mean far from 0 costs no more than storing the values did.
#pragma once

#include <type_traits>

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

// A tile of bfloat16 in shared memory, frames by channels; eight rows lie in different banks. Then the sums of each
// channel, and those of its squares.
template <int columns>
struct StoredTile {
  static constexpr int pitch = columns * static_cast<int>(sizeof(Bfloat16)) + 16;
  static constexpr int sums_at = kTile * pitch, bytes = sums_at + 2 * columns * static_cast<int>(sizeof(float));

  // The place of eight channels of a row, counted from shared().
  static METATASNET_DEVICE int place(int row, int unit) { return row * pitch + 16 * unit; }
  static METATASNET_DEVICE float* sums(const Block& block) { return reinterpret_cast<float*>(block.shared() + sums_at); }
};

// Adds up 16 channels over `rows` rows of bfloat16 in shared memory, and `apart` floats on their squares; a warp does so. `place` is that
// of eight channels of a row, the first or the second eight, and sixteen rows on they are `step` bytes further. Rows up to the next
// multiple of 16 are 0. The loop over 16 rows each is unrolled `unrolled` times.
template <int unrolled, class Where>
METATASNET_DEVICE void add_up(Block& block, int rows, int step, Where place, float* to, int apart) {
  constexpr std::uint32_t kOnes = 0x3f803f80;
  const int lane = block.lane();
  // Matrices of 8 frames by 8 channels: as A, channels change before frames; as B, frames before channels.
  int as_a = place(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  int as_b = place(lane % 16, lane / 16);
  float sum[4] = {}, squares[2][4] = {};
#pragma unroll unrolled
  for (int row = 0; row < rows; row += 16) {
    std::uint32_t a[4], b[4];
    block.load_transposed(a, as_a);
    block.load_transposed(b, as_b);
    block.mma_bfloat16(sum, a, {kOnes, kOnes});
    block.mma_bfloat16(squares[0], a, {b[0], b[1]});
    block.mma_bfloat16(squares[1], a, {b[2], b[3]});
    as_a += step;
    as_b += step;
  }
  // The squares of channel c are in row c, column c, on the diagonal: for the upper eight of squares[1].
  const int channel = d_row(lane, 0);
  if (d_column(lane, 0) != (channel & ~1)) return;
  to[channel] = sum[0];
  to[channel + 8] = sum[2];
  to[apart + channel] = channel % 2 ? squares[0][1] : squares[0][0];
  to[apart + channel + 8] = channel % 2 ? squares[1][3] : squares[1][2];
}

// The same as finish_moments for a StoredTile, in which rows that are not there are 0. Its rows need not be complete yet.
template <int threads, int columns>
METATASNET_DEVICE void finish_stored(Block& block, const Statistics& to, int unit, int tile, int part) {
  using Tile = StoredTile<columns>;
  constexpr int kWarps = threads / kWarp;
  const NormArgs& norm = to.norm;
  const PartMoments& source = norm.sources[0];
  const int rows = frames_from(norm.frames, static_cast<std::int64_t>(tile) * kTile, kTile);
  float* const sums = Tile::sums(block);
  block.sync();
#pragma unroll 1
  for (int slice = block.warp(); slice < columns / 16; slice += kWarps) {
    add_up<4>(block, rows, 16 * Tile::pitch, [&](int row, int half) { return Tile::place(row, 2 * slice + half); },
           sums + 16 * slice, columns);
  }
  block.sync();  // all channels' sums are there
  Moments* const out = source.of(unit * source.units_of, tiles_of(norm.frames), tile, part);
#pragma unroll 1
  for (int group = block.warp(); group < kGroups; group += kWarps) {
    const Overlap overlap(source, part, group * norm.width, (group + 1) * norm.width);
    if (overlap.channels() == 0) continue;
    double sum = 0.0, squares = 0.0;
    for (int c = overlap.begin + block.lane(); c < overlap.end; c += kWarp) {
      sum += double{sums[c]};
      squares += double{sums[columns + c]};
    }
    sum = warp_sum(block, sum);
    squares = warp_sum(block, squares);
    const float count = static_cast<float>(rows * overlap.channels()), mean = static_cast<float>(sum) / count;
    const double m2 = squares + mean * (double{mean} * count - 2.0 * sum);  // from the mean as it is published
    if (block.lane() > 0) continue;
    block.publish(&out[group].mean, mean);
    block.publish(&out[group].m2, m2 > 0.0 ? static_cast<float>(m2) : 0.0f);
  }
  finish_tile<threads>(block, to, unit);
}

// For a pass whose blocks have 32 channels of a tile; the grid is tiles, groups of channels, units. A thread has
// channels 8 (lane % 4) to 8 (lane % 4) + 7 of four frames, as they are stored; 0 where there are none.
template <class Element>
constexpr int kChannelsSpace = std::is_same_v<Element, Bfloat16> ? StoredTile<kChannels>::bytes : MomentsSpace<kChannels>::bytes;

template <int threads, class Element>
METATASNET_DEVICE void finish_channels(Block& block, const Statistics& to, const Eight (&y)[4]) {
  const int first_row = block.warp() % kRowWarps * kWarpRows + block.lane() / 4;
  if constexpr (std::is_same_v<Element, Bfloat16>) {
    const int rows = frames_from(to.norm.frames, std::int64_t{block.x()} * kTile, kTile);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      auto* const at = reinterpret_cast<Bfloat16*>(
          block.shared() + StoredTile<kChannels>::place(first_row + 8 * j, block.lane() % 4));
      store_eight(at, first_row + 8 * j < rows ? y[j] : Eight{});
    }
    finish_stored<threads, kChannels>(block, to, block.z(), block.x(), block.y());
  } else {
    finish_moments<threads, kChannels, 8, kFragmentRows>(
        block, to, block.z(), block.x(), block.y(), first_row, [&](int k) { return block.lane() % 4 * 8 + k; },
        [&](int k, int r) { return y[r].v[k]; });
  }
}

}  // namespace metatasnet::METATASNET_DEVICES
