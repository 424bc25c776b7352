// The end of a block of the masking network and, if it fits on chip, the beginning of the next block.
//
//   x[u, t] += res_out(h[u, t])
//   a[u, t] = prelu(conv1d(x[u, t]))         MixConv only: the next block's, with its moments
//
// skip_out is not applied here: the skip sum is linear in the h of all blocks, which stay in memory, and one product at
// the end makes it from them.
//
// Bytes per frame and channel, bfloat16: h 2, x 8; Mix writes x a second time as the next product reads it, 2, and that
// product reads it, 2; MixConv keeps that tile in shared memory and writes a, 2. Weights once per 128 frames (from L2).
// FLOPs per unit: 2 T H B, and MixConv's 2 T B H more. Source: Samuel et al. 2020, section 2; original
// model/mask_tcn.py.
#pragma once

#include "cuda/pointwise.h"

namespace metatasnet::METATASNET_DEVICES {

struct MixArgs {
  PointwiseArgs product;
  float* x;            // (units, frames, ld_out)
  void* operand;       // x in the next product's type; null if that product reads x itself, or there is none
  PointwiseArgs next;  // in MixConv: the product of x, whose tile is in shared memory
};

// Return the address of a tile's part of x, from output `first` on.
METATASNET_DEVICE float* stream_at(const MixArgs& args, int unit, std::int64_t first_frame, int first) {
  const PointwiseArgs& product = args.product;
  return args.x + (static_cast<std::int64_t>(unit) * product.frames + first_frame) * product.ld_out + first;
}

// x, loaded by 40 independent loads of a thread that are in flight together.
METATASNET_DEVICE void begin_with_stream(const Block& block, const MixArgs& args, int unit, std::int64_t first_frame,
                                         int first_output, Accumulators& sum) {
  const PointwiseArgs& product = args.product;
  const int left = frames_from(product.frames, first_frame, kTile), outputs = product.outputs - first_output;
  const float* const x = stream_at(args, unit, first_frame, first_output);
  clear(sum);
  each_row(block, sum, left, [&](int i, int h, int row, int column) {
    const float* const at = x + row * product.ld_out + column;
#pragma unroll
    for (int j = 0; j < kColumnFragments; ++j) {
      if (column + kFragmentColumns * j >= outputs) continue;
      const Pair pair = load_pair(at + kFragmentColumns * j);
      sum.v[i][j][2 * h] = pair.v[0];
      sum.v[i][j][2 * h + 1] = pair.v[1];
    }
  });
}

// Adds the biases and writes x; calls `keep(row, channel, first, second)` for each two neighbouring values.
template <class Keep>
METATASNET_DEVICE void write_stream(const Block& block, const MixArgs& args, Accumulators& sum, int unit,
                                    std::int64_t first_frame, int first_output, Keep keep) {
  const PointwiseArgs& product = args.product;
  const int left = frames_from(product.frames, first_frame, kTile), outputs = product.outputs - first_output;
  float* const x = stream_at(args, unit, first_frame, first_output);
  const float* const bias = biases_of(product, unit, first_output);
  const int first_column = WarpPlace(block).column + d_column(block.lane(), 0);
#pragma unroll
  for (int j = 0; j < kColumnFragments; ++j) {
    const Pair pair = bias_pair(bias, first_column + kFragmentColumns * j, outputs);
#pragma unroll
    for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
      for (int r = 0; r < 4; ++r) sum.v[i][j][r] += pair.v[r % 2];
    }
  }
  each_row(block, sum, left, [&](int i, int h, int row, int column) {
    float* const at = x + row * product.ld_out + column;
#pragma unroll
    for (int j = 0; j < kColumnFragments; ++j) {
      if (column + kFragmentColumns * j >= outputs) continue;
      store_pair(at + kFragmentColumns * j, sum.v[i][j][2 * h], sum.v[i][j][2 * h + 1]);
      keep(row, column + kFragmentColumns * j, sum.v[i][j][2 * h], sum.v[i][j][2 * h + 1]);
    }
  });
}

template <class Arithmetic>
METATASNET_DEVICE void mix_product(Block& block, const MixArgs& args, int unit, std::int64_t first_frame,
                                   int first_output, Accumulators& sum) {
  pointwise_product<Arithmetic, From::frames, FramesAndWeights<kStages>>(
      block, args.product, unit, first_frame, first_output, sum,
      [&](Accumulators& begin) { begin_with_stream(block, args, unit, first_frame, first_output, begin); });
  block.forget();
}

// Grid: tiles of frames, tiles of outputs, units.
template <class Arithmetic>
struct Mix {
  using Args = MixArgs;
  static constexpr int threads = kThreads;
  static constexpr int blocks = std::is_same_v<Arithmetic, InFloat32> ? 1 : 2;

  static METATASNET_DEVICE void run(Block& block, const Args& args) {
    using Element = typename Arithmetic::Element;
    const std::int64_t first_frame = static_cast<std::int64_t>(block.x()) * kTile;
    const int first_output = block.y() * kColumns, unit = block.z(), ld = args.product.ld_out;
    Accumulators sum;
    mix_product<Arithmetic>(block, args, unit, first_frame, first_output, sum);
    auto* operand = static_cast<Element*>(args.operand);
    if (operand) operand += (static_cast<std::int64_t>(unit) * args.product.frames + first_frame) * ld + first_output;
    const auto keep = [&](int row, int output, float first, float second) {
      if (operand) store_pair(operand + row * ld + output, first, second);
    };
    write_stream(block, args, sum, unit, first_frame, first_output, keep);
  }
};

// For bfloat16, and B and H of one tile of outputs: in float32 the tile would leave room for one block only.
// Grid: tiles of frames, 1, units.
struct MixConv {
  using Args = MixArgs;
  using Convolution = WeightsAlone<kStages>;
  static constexpr int threads = kThreads;
  static constexpr int blocks = 2;
  // The tile of x is stored chunk by chunk, as a product's operand, before the pipeline stages of conv1d's weights.
  static constexpr int kTileBytes = kColumns * static_cast<int>(sizeof(Bfloat16)) / kChunkBytes * kFrameBytes;
  static constexpr int shared_bytes = kTileBytes + Convolution::stages * Convolution::bytes;
  static_assert(shared_bytes >= kPipelineBytes);

  static METATASNET_DEVICE void run(Block& block, const Args& args) {
    constexpr int kPerChunk = kChunkBytes / sizeof(Bfloat16), kPerUnit = 16 / sizeof(Bfloat16);
    const PointwiseArgs& next = args.next;
    const int outputs = args.product.outputs, chunks = padded(outputs) / kPerChunk;
    Accumulators sum;
    mix_product<InBfloat16>(block, args, block.z(), std::int64_t{block.x()} * kTile, 0, sum);

    auto weights = weight_copies<Bfloat16>(block, weights_of<Bfloat16>(next, block.z()), next.ld_weights, 0,
                                           next.outputs);
    const auto load = [&](int stage) { weights.load(block, stage); };
    begin_loading<Convolution>(block, kTileBytes, chunks, load);  // these copies run while x is written

    const int pads = (padded(outputs) - outputs) / kPerUnit;
    for (int i = block.thread(); i < kTile * pads; i += kThreads) {
      const int row = i / pads, channel = outputs + i % pads * kPerUnit;
      store_words(at_tile(block, row, channel), Words{});
    }
    const auto keep = [&](int row, int channel, float first, float second) {
      store_pair(reinterpret_cast<Bfloat16*>(at_tile(block, row, channel)) + channel % kPerUnit, first, second);
    };
    write_stream(block, args, sum, block.z(), std::int64_t{block.x()} * kTile, 0, keep);
    const WarpPlace place(block);
    const bool active = std::int64_t{block.x()} * kTile + place.row < next.frames && place.column < next.outputs;
    clear(sum);
    // Its first barrier comes before any thread reads the tile.
    multiply_loaded<InBfloat16, Convolution, false>(block, kTileBytes, 0, chunks, active, 0.0f, load, sum);
    block.forget();
    write_outputs<Bfloat16>(block, next, sum, block.z(), std::int64_t{block.x()} * kTile, 0);
    finish_outputs(block, next, sum, block.z(), block.x(), 0);
  }

 private:
  // The unit of 16 bytes that holds a channel.
  static METATASNET_DEVICE char* at_tile(const Block& block, int row, int channel) {
    constexpr int kPerChunk = kChunkBytes / sizeof(Bfloat16), kPerUnit = 16 / sizeof(Bfloat16);
    return block.shared() + channel / kPerChunk * kFrameBytes + unit_offset(row, channel % kPerChunk / kPerUnit);
  }
};

}  // namespace metatasnet::METATASNET_DEVICES
