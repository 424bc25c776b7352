// 1x1 convolutions of all (item, instrument) units, each with its own weights.
//
//   y[u, t, o] = prelu( bias[u, o] + share(t, o) + sum_k W[u, o, k] f(a[u, t, k]) )
//
// f is the identity or, before the masking network, a PReLU. A slope of 1 is the identity, 0 is ReLU. The group
// norm before the convolution is in W and bias (fold.h). `share` is the spectrogram's part of the encoder's first
// bottleneck, interpolated along time. The frames of the first encoder product are windows of the signal. Sums begin
// with the biases, which are loaded while the first chunks are on their way.
//
// Bytes per unit: T K + T O activations once per 160 outputs, O K weights once per 128 frames (from L2). FLOPs: 2 T K
// O. Source: Samuel et al. 2020, section 2; original model/conv1d.py, model/encoder.py.
#pragma once

#include <type_traits>

#include "cuda/interface.h"
#include "cuda/moments.h"

namespace metatasnet::METATASNET_DEVICES {

using device::Frames;

struct PointwiseArgs {
  int instruments;  // units of an item
  std::int64_t frames;
  Frames source[2];  // side by side along the sum, each padded to kChannels; two only for activated frames
  const float* signal;  // instead of frames: windows of a signal
  std::int64_t samples;
  int window, stride, padding;
  float source_slope;

  const void* weights;  // (outputs, ld_weights) of each unit
  std::int64_t weights_item, weights_instrument;
  int ld_weights;
  const float* bias;  // null: none
  std::int64_t bias_item, bias_instrument;
  int outputs;

  const float* share;  // (items, share_frames, ld_out), added to the product from frames
  std::int64_t share_frames;
  float slope;
  void* out;  // (units, frames, ld_out); float32 for activated frames, which become the residual stream
  int ld_out;
  Statistics statistics;  // moments of y
};

template <class Element>
METATASNET_DEVICE const Element* weights_of(const PointwiseArgs& args, int unit) {
  const int item = unit / args.instruments, instrument = unit % args.instruments;
  return static_cast<const Element*>(args.weights) + item * args.weights_item + instrument * args.weights_instrument;
}

// Copies the rows of weights (outputs, ld) from `first` on.
template <class Element>
METATASNET_DEVICE RowCopies<kColumns, true> weight_copies(const Block& block, const void* weights, int ld,
                                                          int first, int outputs) {
  const auto* from = static_cast<const Element*>(weights) + static_cast<std::int64_t>(first) * ld;
  const std::int64_t row_bytes = ld * static_cast<int>(sizeof(Element));
  return {block, reinterpret_cast<const char*>(from), row_bytes, 0, outputs - first, static_cast<int>(row_bytes / 16)};
}

// Copies a source's frames from `first` on, which may lie before the first frame.
template <class Element>
METATASNET_DEVICE RowCopies<kTile, false> frame_copies(const Block& block, const PointwiseArgs& args,
                                                       const Frames& source, int unit, std::int64_t first) {
  constexpr int kPerUnit = 16 / sizeof(Element);
  const int item = unit / args.instruments, instrument = unit % args.instruments;
  const auto* from = static_cast<const Element*>(source.data) + item * source.item + instrument * source.instrument +
                     first * source.row;
  const int low = first < 0 ? static_cast<int>(-first) : 0;
  return {block,
          reinterpret_cast<const char*>(from),
          source.row * static_cast<int>(sizeof(Element)),
          low,
          frames_from(args.frames, first, kTile),
          (source.channels + kPerUnit - 1) / kPerUnit};
}

// Windows of the signal, zero outside it: element k of frame t is sample t * stride - padding + k. A thread makes the same
// two elements of every kApart-th frame. Frames after the last one are not zero: their results are not written.
template <class Arithmetic>
METATASNET_DEVICE void load_signal(Block& block, int to, const PointwiseArgs& args, int item, std::int64_t first,
                                   int chunk) {
  using Element = typename Arithmetic::Element;
  constexpr int kPerChunk = kChunkBytes / sizeof(Element), kPerUnit = 16 / sizeof(Element), kPairs = kPerChunk / 2;
  constexpr int kApart = kThreads / kPairs;
  static_assert(kTile % kApart == 0 && kApart % 8 == 0);  // rows at this distance are swizzled alike
  block.forget();  // places kept from chunk to chunk would take registers that the accumulators need
  const int row = block.thread() / kPairs, k = block.thread() % kPairs * 2, tap = chunk * kPerChunk + k;
  const std::int64_t sample = (first + row) * args.stride - args.padding + tap;
  const float* const from = args.signal + item * args.samples + sample;
  // Sample `sample` + e exists for e from low to past - 1.
  const int step = kApart * args.stride, most = kTile * args.stride;
  const int low = sample < 0 ? static_cast<int>(-sample) : 0;
  const int past = args.samples - sample < most ? static_cast<int>(args.samples - sample) : most;
  std::uint32_t there[2];
#pragma unroll
  for (int j = 0; j < 2; ++j) there[j] = tap + j < args.window && low < past ? past - low : 0;
  char* const at = block.shared() + to + unit_offset(row, k / kPerUnit) + k % kPerUnit * sizeof(Element);
#pragma unroll
  for (int i = 0; i < kTile / kApart; ++i) {
    float pair[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const bool valid = static_cast<std::uint32_t>(i * step + j - low) < there[j];
      pair[j] = valid ? from[i * step + j] : 0.0f;
    }
    store_pair(reinterpret_cast<Element*>(at + i * kApart * kChunkBytes), pair[0], pair[1]);
  }
}

enum class From { frames, activated_frames, signal, frames_and_share };

// `begin(sum)` sets the initial values of the sums. Frames are multiplied from channel `channel` on.
template <class Arithmetic, From from, class Holds, class Begin>
METATASNET_DEVICE void pointwise_product(Block& block, const PointwiseArgs& args, int unit, std::int64_t first_frame,
                                         int first_output, Accumulators& sum, Begin begin, int channel = 0) {
  using Element = typename Arithmetic::Element;
  constexpr int kPerChunk = kChunkBytes / sizeof(Element);
  const WarpPlace place(block);
  const bool active = first_frame + place.row < args.frames && first_output + place.column < args.outputs;
  const int chunks = (args.ld_weights - channel) / kPerChunk;
  auto weights =
      weight_copies<Element>(block, weights_of<Element>(args, unit), args.ld_weights, first_output, args.outputs);
  weights.skip(channel / kPerChunk);
  const auto multiply = [&](auto load) {
    begin_loading<Holds>(block, 0, chunks, load);
    begin(sum);
    multiply_loaded<Arithmetic, Holds, from == From::activated_frames>(block, 0, 0, chunks, active, args.source_slope,
                                                                       load, sum);
  };
  if constexpr (from == From::signal) {
    int chunk = 0;
    multiply([&](int stage) {
      load_signal<Arithmetic>(block, stage, args, unit / args.instruments, first_frame, chunk++);
      weights.load(block, stage + kFrameBytes);
    });
  } else {
    auto frames = frame_copies<Element>(block, args, args.source[0], unit, first_frame);
    frames.skip(channel / kPerChunk);
    int left = padded(args.source[0].channels) / kPerChunk;  // chunks of the first source
    multiply([&](int stage) {
      if (from == From::activated_frames && left-- == 0) {
        frames = frame_copies<Element>(block, args, args.source[1], unit, first_frame);
      }
      frames.load(block, stage);
      weights.load(block, stage + kFrameBytes);
    });
  }
}

// The biases of a unit from output `first` on; null if there are none.
METATASNET_DEVICE const float* biases_of(const PointwiseArgs& args, int unit, int first) {
  if (!args.bias) return nullptr;
  const int item = unit / args.instruments, instrument = unit % args.instruments;
  return args.bias + item * args.bias_item + instrument * args.bias_instrument + first;
}

// The position of frame `t` in a spectrogram with another number of frames, corners aligned.
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

// Calls body(i, h, row, column) for every row of this lane that is one of the `left` rows of the tile: its sums are
// sum.v[i][j][2 h] and the next, of columns `column` + 8 j and the next.
template <class Sums, class Body>
METATASNET_DEVICE void each_row(const Block& block, const Sums&, int left, Body body) {
  const int column = Sums::column(block) + d_column(block.lane(), 0);
#pragma unroll
  for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = Sums::row(block, i) + d_row(block.lane(), 2 * h);
      if (row < left) body(i, h, row, column);
    }
  }
}

// This lane's biases of columns `column` + 8 j and the next; 0 where there are none. Outputs that have biases are a multiple of 8.
METATASNET_DEVICE Pair bias_pair(const float* bias, int output, int outputs) {
  return bias && output < outputs ? load_pair(bias + output) : Pair{};
}

template <class Sums>
METATASNET_DEVICE void begin_with_bias(const Block& block, const PointwiseArgs& args, int unit, int first_output,
                                       Sums& sum) {
  const float* const bias = biases_of(args, unit, first_output);
  const int column = Sums::column(block) + d_column(block.lane(), 0);
#pragma unroll
  for (int j = 0; j < Sums::fragments; ++j) {
    const Pair pair = bias_pair(bias, column + kFragmentColumns * j, args.outputs - first_output);
#pragma unroll
    for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
      for (int r = 0; r < 4; ++r) sum.v[i][j][r] = pair.v[r % 2];
    }
  }
}

// Adds the share of the spectrogram. It writes the positions of the tile's rows to block.shared(), so all threads must
// have finished reading that.
template <class Sums>
METATASNET_DEVICE void add_share(Block& block, const PointwiseArgs& args, int unit, std::int64_t first_frame,
                                 int first_output, Sums& sum) {
  auto* const places = reinterpret_cast<Interpolation*>(block.shared());
  if (block.thread() < kTile) {
    places[block.thread()] = interpolate(first_frame + block.thread(), args.frames, args.share_frames);
  }
  block.sync();
  const float* share = args.share + unit / args.instruments * args.share_frames * args.ld_out + first_output;
  const int left = frames_from(args.frames, first_frame, kTile), columns = args.ld_out - first_output;
  each_row(block, sum, left, [&](int i, int h, int row, int column) {
    const Interpolation at = places[row];
    const float* const before = share + at.frame * args.ld_out + column;
    const float* const after = share + at.next * args.ld_out + column;
#pragma unroll
    for (int j = 0; j < Sums::fragments; ++j) {
      if (column + kFragmentColumns * j >= columns) continue;
      const Pair first = load_pair(before + kFragmentColumns * j), second = load_pair(after + kFragmentColumns * j);
#pragma unroll
      for (int c = 0; c < 2; ++c) sum.v[i][j][2 * h + c] += first.v[c] + at.weight * (second.v[c] - first.v[c]);
    }
  });
}

// Applies the PReLU and writes the results; `sum` then holds them as stored.
template <class Out, class Sums>
METATASNET_DEVICE void write_outputs(const Block& block, const PointwiseArgs& args, Sums& sum, int unit,
                                     std::int64_t first_frame, int first_output) {
#pragma unroll
  for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
    for (int j = 0; j < Sums::fragments; ++j) {
#pragma unroll
      for (int r = 0; r < 4; r += 2) {
        const Pair pair = as_stored<Out>(prelu(sum.v[i][j][r], args.slope), prelu(sum.v[i][j][r + 1], args.slope));
        sum.v[i][j][r] = pair.v[0];
        sum.v[i][j][r + 1] = pair.v[1];
      }
    }
  }
  const int left = frames_from(args.frames, first_frame, kTile), columns = args.ld_out - first_output;
  auto* const out = static_cast<Out*>(args.out) +
                    (static_cast<std::int64_t>(unit) * args.frames + first_frame) * args.ld_out + first_output;
  each_row(block, sum, left, [&](int i, int h, int row, int column) {
    Out* const at = out + row * args.ld_out + column;
#pragma unroll
    for (int j = 0; j < Sums::fragments; ++j) {
      if (column + kFragmentColumns * j >= columns) continue;
      store_pair(at + kFragmentColumns * j, sum.v[i][j][2 * h], sum.v[i][j][2 * h + 1]);
    }
  });
}

// Compute the moments of the tile from the values that write_outputs has left in `sum`.
template <class Sums>
METATASNET_DEVICE void finish_outputs(Block& block, const PointwiseArgs& args, const Sums& sum, int unit, int tile,
                                      int part) {
  static_assert(MomentsSpace<kColumns>::bytes <= kPipelineBytes);
  const int column = Sums::column(block) + d_column(block.lane(), 0);
  finish_moments<Sums::threads, kColumns, 2 * Sums::fragments, Sums::apart>(
      block, args.statistics, unit, tile, part, Sums::row(block, 0) + d_row(block.lane(), 0),
      [&](int k) { return column + kFragmentColumns * (k / 2) + k % 2; },
      [&](int k, int r) { return sum.v[r / 2][k / 2][r % 2 * 2 + k % 2]; });
}

// Grid: tiles of frames, tiles of outputs, units.
template <class Arithmetic, From from>
struct Pointwise {
  using Args = PointwiseArgs;
  static constexpr int threads = kThreads;
  static constexpr int blocks = std::is_same_v<Arithmetic, InFloat32> ? 1 : 2;

  static METATASNET_DEVICE void run(Block& block, const Args& args) {
    using Out = std::conditional_t<from == From::activated_frames, float, typename Arithmetic::Element>;
    Accumulators sum;
    // Read at each use: a kept value would cost a register in the product's loop.
    const auto first_frame = [&] { return std::int64_t{block.x()} * kTile; };
    const auto first_output = [&] { return block.y() * kColumns; };
    pointwise_product<Arithmetic, from, FramesAndWeights<kStages>>(
        block, args, block.z(), first_frame(), first_output(), sum,
        [&](Accumulators& begin) { begin_with_bias(block, args, block.z(), first_output(), begin); });
    block.forget();
    if (from == From::frames_and_share) add_share(block, args, block.z(), first_frame(), first_output(), sum);
    write_outputs<Out>(block, args, sum, block.z(), first_frame(), first_output());
    // No norm reads the filter bank's outputs, nor the bottleneck's.
    if (from == From::signal || from == From::frames_and_share || !args.statistics.wanted) return;
    finish_outputs(block, args, sum, block.z(), block.x(), block.y());
  }
};

}  // namespace metatasnet::METATASNET_DEVICES
