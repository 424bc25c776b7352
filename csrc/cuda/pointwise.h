// 1x1 convolutions of all (item, instrument) units, each with its own weights.
//
//   y[u, t, o] = prelu( sum_k W[u, o, k] f(a[u, t, k]) + bias[u, o] + addend[u, t, o] + share(t, o) )
//
// f is the identity or, in front of the masking network, a PReLU. A slope of 1 is the identity, 0 is ReLU. The group norm
// in front of the convolution is in W and bias (fold.h). `share` is the spectrogram's part of the encoder's first
// bottleneck, interpolated along time. The frames of the first encoder product are windows of the signal.
//
// Bytes per unit: T K + T O activations once per 160 outputs, O K weights once per 128 frames (from L2). FLOPs: 2 T K O.
// Source: Samuel et al. 2020, section 2; original model/conv1d.py, model/encoder.py.
#pragma once

#include <type_traits>

#include "cuda/interface.h"
#include "cuda/moments.h"
#include "cuda/norm.h"

namespace metatasnet::METATASNET_DEVICES {

using device::Frames;

struct PointwiseArgs {
  int instruments;  // units of an item
  std::int64_t frames;
  Frames source[2];  // side by side along the sum, each padded to a multiple of kChannels there
  const float* signal;  // instead of them: windows of it
  std::int64_t samples;
  int window, stride, padding;
  float source_slope;

  const void* weights;  // (outputs, ld_weights) of each unit
  std::int64_t weights_item, weights_instrument;
  int ld_weights;
  const float* bias;  // null: none
  std::int64_t bias_item, bias_instrument;
  int outputs;

  const float* addend;  // (units, frames, ld_out), null: none
  const float* share;   // (items, share_frames, ld_out), null: none
  std::int64_t share_frames;
  float slope;
  void* out;  // (units, frames, ld_out)
  bool out_is_float;
  int ld_out;
  Statistics statistics;  // of y
};

template <class Element>
METATASNET_DEVICE const Element* weights_of(const PointwiseArgs& args, int unit) {
  const int item = unit / args.instruments, instrument = unit % args.instruments;
  return static_cast<const Element*>(args.weights) + item * args.weights_item + instrument * args.weights_instrument;
}

// Rows of the weights, the second half of a stage.
template <class Arithmetic>
METATASNET_DEVICE void load_weights(Block& block, char* to, const void* weights, int ld, int first, int outputs,
                                    int chunk) {
  using Element = typename Arithmetic::Element;
  const auto* base = static_cast<const Element*>(weights) + static_cast<std::int64_t>(first) * ld;
  const char* begin = reinterpret_cast<const char*>(base) + chunk * kChunkBytes;
  const int left = outputs - first, row_bytes = ld * static_cast<int>(sizeof(Element));
  load_rows(block, to, kColumns, [&](int row, int unit) -> const char* {
    return row < left ? begin + row * row_bytes + unit * 16 : nullptr;
  });
}

template <class Arithmetic>
METATASNET_DEVICE void load_frames(Block& block, char* to, const PointwiseArgs& args, int unit_index,
                                   std::int64_t first, int chunk) {
  using Element = typename Arithmetic::Element;
  constexpr int kPerChunk = kChunkBytes / sizeof(Element), kPerUnit = 16 / sizeof(Element);
  const int border = padded(args.source[0].channels);
  const bool second = chunk * kPerChunk >= border;
  const Frames& source = args.source[second ? 1 : 0];
  const int channel = chunk * kPerChunk - (second ? border : 0);
  const int item = unit_index / args.instruments, instrument = unit_index % args.instruments;
  const Element* base = static_cast<const Element*>(source.data) + item * source.item + instrument * source.instrument +
                        first * source.row + channel;
  // Rows of the tile that exist; offsets in it fit 32 bits.
  const int low = first < 0 ? static_cast<int>(-first) : 0;
  const int high = args.frames - first < kTile ? static_cast<int>(args.frames - first) : kTile;
  const int stride = static_cast<int>(source.row), left = source.channels - channel;
  load_rows(block, to, kTile, [&](int row, int unit) -> const char* {
    if (row < low || row >= high || unit * kPerUnit >= left) return nullptr;
    return reinterpret_cast<const char*>(base + row * stride + unit * kPerUnit);
  });
}

// Windows of the signal, zero outside it: element k of frame t is sample t * stride - padding + k.
template <class Arithmetic>
METATASNET_DEVICE void load_signal(Block& block, char* to, const PointwiseArgs& args, int item, std::int64_t first,
                                   int chunk) {
  using Element = typename Arithmetic::Element;
  constexpr int kPerChunk = kChunkBytes / sizeof(Element), kPerUnit = 16 / sizeof(Element);
  const float* signal = args.signal + item * args.samples;
  for (int i = block.thread(); i < kTile * kPerChunk / 2; i += kThreads) {
    const int row = i / (kPerChunk / 2), k = i % (kPerChunk / 2) * 2, tap = chunk * kPerChunk + k;
    float pair[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const std::int64_t sample = (first + row) * args.stride - args.padding + tap + j;
      const bool there = tap + j < args.window && first + row < args.frames && sample >= 0 && sample < args.samples;
      pair[j] = there ? Arithmetic::rounded(signal[sample]) : 0.0f;
    }
    char* at = to + unit_offset(row, k / kPerUnit) + k % kPerUnit * sizeof(Element);
    store_pair(reinterpret_cast<Element*>(at), pair[0], pair[1]);
  }
}

enum class From { frames, activated_frames, signal };

template <class Arithmetic, From from>
METATASNET_DEVICE void pointwise_product(Block& block, const PointwiseArgs& args, int unit, std::int64_t first_frame,
                                         int first_output, Accumulators& sum) {
  using Element = typename Arithmetic::Element;
  const Element* weights = weights_of<Element>(args, unit);
  const WarpPlace place(block);
  const bool active = first_frame + place.row < args.frames && first_output + place.column < args.outputs;
  const int chunks = args.ld_weights * static_cast<int>(sizeof(Element)) / kChunkBytes;
  const auto load = [&](char* stage, int chunk) {
    if (from == From::signal) {
      load_signal<Arithmetic>(block, stage, args, unit / args.instruments, first_frame, chunk);
    } else {
      load_frames<Arithmetic>(block, stage, args, unit, first_frame, chunk);
    }
    load_weights<Arithmetic>(block, stage + kFrameBytes, weights, args.ld_weights, first_output, args.outputs, chunk);
  };
  clear(sum);
  begin_loading<FramesAndWeights>(block, block.shared(), chunks, load);
  multiply_loaded<Arithmetic, FramesAndWeights, from == From::activated_frames>(
      block, block.shared(), nullptr, chunks, active, args.source_slope, load, sum);
}

// The biases of a unit from output `first` on; null where there are none.
METATASNET_DEVICE const float* biases_of(const PointwiseArgs& args, int unit, int first) {
  if (!args.bias) return nullptr;
  const int item = unit / args.instruments, instrument = unit % args.instruments;
  return args.bias + item * args.bias_item + instrument * args.bias_instrument + first;
}

// Where frame `t` lies in a spectrogram of other frames, corners aligned.
struct Interpolation {
  std::int64_t frame, next;
  float weight;
};

METATASNET_DEVICE Interpolation interpolate(std::int64_t t, std::int64_t frames, std::int64_t others) {
  Interpolation at;
  const double scale = frames > 1 ? static_cast<double>(others - 1) / static_cast<double>(frames - 1) : 0.0;
  const double position = scale * static_cast<double>(t);
  at.frame = static_cast<std::int64_t>(position);
  if (at.frame > others - 1) at.frame = others - 1;
  at.next = at.frame + 1 < others ? at.frame + 1 : others - 1;
  at.weight = static_cast<float>(position - static_cast<double>(at.frame));
  return at;
}

// Bias, addend, share and PReLU; the results, as stored, are left in `sum`.
template <class Element>
METATASNET_DEVICE void write_outputs(Block& block, const PointwiseArgs& args, Accumulators& sum, int unit,
                                     std::int64_t first_frame, int first_output) {
  const WarpPlace place(block);
  const int lane = block.lane();
  const int left = frames_from(args.frames, first_frame, kTile);
  const int columns = args.ld_out - first_output, outputs = args.outputs - first_output;  // from the tile's first on
  const std::int64_t base =
      (static_cast<std::int64_t>(unit) * args.frames + first_frame) * args.ld_out + first_output;
  const float* bias = biases_of(args, unit, first_output);
  const float* addend = args.addend ? args.addend + base : nullptr;
  const float* share = nullptr;
  if (args.share) share = args.share + unit / args.instruments * args.share_frames * args.ld_out + first_output;
#pragma unroll
  for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = place.row + kFragmentRows * i + d_row(lane, 2 * h);
      if (row >= left) continue;
      const float *before = nullptr, *after = nullptr;
      float weight = 0.0f;
      if (share) {
        const Interpolation at = interpolate(first_frame + row, args.frames, args.share_frames);
        before = share + at.frame * args.ld_out;
        after = share + at.next * args.ld_out;
        weight = at.weight;
      }
#pragma unroll
      for (int j = 0; j < kColumnFragments; ++j) {
        const int output = place.column + kFragmentColumns * j + d_column(lane, 0);
        if (output >= columns) continue;
        const int to = row * args.ld_out + output;
        float pair[2];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float value = sum.v[i][j][2 * h + c];
          if (output + c < outputs) {
            if (bias) value += bias[output + c];
            if (addend) value += addend[to + c];
          }
          if (share) value += before[output + c] + weight * (after[output + c] - before[output + c]);
          value = prelu(value, args.slope);
          pair[c] = args.out_is_float ? value : to_float(stored<Element>(value));
          sum.v[i][j][2 * h + c] = pair[c];
        }
        if (args.out_is_float) {
          store_pair(static_cast<float*>(args.out) + base + to, pair[0], pair[1]);
        } else {
          store_pair(static_cast<Element*>(args.out) + base + to, pair[0], pair[1]);
        }
      }
    }
  }
}

// Of the tile that write_outputs has left in `sum`.
METATASNET_DEVICE void write_moments(Block& block, const PointwiseArgs& args, const Accumulators& sum, int unit,
                                     int tile_index, int first_output) {
  const int left = frames_from(args.frames, static_cast<std::int64_t>(tile_index) * kTile, kTile);
  auto* moments = reinterpret_cast<Moments*>(block.shared());  // [kRowWarps][kColumns]
  const WarpPlace place(block);
  const int rows = left - place.row;
  if (rows > 0) {
#pragma unroll
    for (int j = 0; j < kColumnFragments; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float values[4] = {sum.v[0][j][c], sum.v[0][j][2 + c], sum.v[1][j][c], sum.v[1][j][2 + c]};
        const Moments m = column_moments(block, values, rows);
        const int column = place.column + kFragmentColumns * j + d_column(block.lane(), c);
        if (block.lane() < 4) moments[block.warp() % kRowWarps * kColumns + column] = m;
      }
    }
  }
  block.sync();
  const std::int64_t tile = static_cast<std::int64_t>(unit) * tiles_of(args.frames) + tile_index;
  float* to = args.statistics.tiles + tile * 2 * args.ld_out;
  for (int column = block.thread(); column < kColumns; column += kThreads) {
    if (first_output + column >= args.ld_out) continue;
    const Moments m = merge_warps(moments + column, kColumns, left);
    to[first_output + column] = m.mean;
    to[args.ld_out + first_output + column] = m.m2;
  }
}

// Grid: tiles of frames, tiles of outputs, units.
template <class Arithmetic, From from>
struct Pointwise {
  using Args = PointwiseArgs;
  static constexpr int threads = kThreads;
  static constexpr int blocks = std::is_same_v<Arithmetic, InFloat32> ? 1 : 2;

  static METATASNET_DEVICE void run(Block& block, const Args& args) {
    Accumulators sum;
    pointwise_product<Arithmetic, from>(block, args, block.z(), static_cast<std::int64_t>(block.x()) * kTile,
                                        block.y() * kColumns, sum);
    const std::int64_t first_frame = static_cast<std::int64_t>(block.x()) * kTile;
    const int first_output = block.y() * kColumns, unit = block.z();
    write_outputs<typename Arithmetic::Element>(block, args, sum, unit, first_frame, first_output);
    if (from == From::signal || !args.statistics.tiles) return;  // no norm reads the filter bank's outputs
    write_moments(block, args, sum, unit, block.x(), first_output);
    finish_tile<threads>(block, args.statistics, args.frames, block.z(), block.x());
  }
};

}  // namespace metatasnet::METATASNET_DEVICES
