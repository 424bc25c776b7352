// The end of a block of the masking network, and where it fits on chip the beginning of the next one.
//
//   x[u, t] += res_out(h[u, t]),  skip[u, t] += skip_out(h[u, t])     as one product with B + B outputs
//   a[u, t] = prelu(conv1d(x[u, t]))                                   MixConv only: the next block's, with its moments
//
// Bytes per frame and channel, bfloat16: h 2, x 8, skip 8; Mix writes x a second time as the next product reads it, 2, and
// that product reads it, 2; MixConv keeps that tile in shared memory. Weights once per 128 frames (from L2).
// FLOPs per unit: 4 T H B, and MixConv's 2 T B H more. Source: Samuel et al. 2020, section 2; original model/mask_tcn.py.
#pragma once

#include "cuda/pointwise.h"

namespace metatasnet::METATASNET_DEVICES {

struct MixArgs {
  PointwiseArgs product;  // outputs [0, residual) are added to x, the others to the skip sum
  int residual;
  float* x;       // (units, frames, ld_out)
  void* operand;  // x as the next product reads it; null where that is x itself, or nobody reads it
  float* skip;    // (units, frames, ld_out)
  bool skip_is_empty;
  PointwiseArgs next;  // MixConv: of x, whose tile it has
  int tiles;           // MixConvResident: of a block
};

// x and the skip sum of a tile; `keep(row, channel, first, second)` gets neighbours of the new x.
template <class Keep>
METATASNET_DEVICE void add_outputs(Block& block, const MixArgs& args, const Accumulators& sum, int unit,
                                   std::int64_t first_frame, int first_output, Keep keep) {
  const PointwiseArgs& product = args.product;
  const WarpPlace place(block);
  const int lane = block.lane(), left = frames_from(product.frames, first_frame, kTile);
  const std::int64_t base = (static_cast<std::int64_t>(unit) * product.frames + first_frame) * product.ld_out;
  const float* bias = biases_of(product, unit, 0);
  float* const x = args.x + base;
  float* const skip = args.skip + base - args.residual;
#pragma unroll
  for (int j = 0; j < kColumnFragments; ++j) {
    const int output = first_output + place.column + kFragmentColumns * j + d_column(lane, 0);
    if (output >= product.outputs) continue;
    const bool residual = output < args.residual, empty = !residual && args.skip_is_empty;
    const float first = bias ? bias[output] : 0.0f, second = bias ? bias[output + 1] : 0.0f;
#pragma unroll
    for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = place.row + kFragmentRows * i + d_row(lane, 2 * h);
        if (row >= left) continue;
        float* const at = (residual ? x : skip) + row * product.ld_out + output;
        const float y0 = sum.v[i][j][2 * h] + first + (empty ? 0.0f : at[0]);
        const float y1 = sum.v[i][j][2 * h + 1] + second + (empty ? 0.0f : at[1]);
        store_pair(at, y0, y1);
        if (residual) keep(row, output, y0, y1);
      }
    }
  }
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
    const int first_output = block.y() * kColumns, unit = block.z();
    Accumulators sum;
    pointwise_product<Arithmetic, From::frames>(block, args.product, unit, first_frame, first_output, sum);
    const int ld = args.product.ld_out;
    auto* operand = static_cast<Element*>(args.operand);
    if (operand) operand += (static_cast<std::int64_t>(unit) * args.product.frames + first_frame) * ld;
    add_outputs(block, args, sum, unit, first_frame, first_output, [&](int row, int channel, float y0, float y1) {
      if (operand) store_pair(operand + row * ld + channel, y0, y1);
    });
  }
};

// Where the tile of x lies as the operand of a product, chunk by chunk, beside the stages of weights.
constexpr int kTileBytes = kColumns * static_cast<int>(sizeof(Bfloat16)) / kChunkBytes * kFrameBytes;
constexpr int kMixConvBytes = kTileBytes + kStages * kWeightBytes;
static_assert(kMixConvBytes >= kPipelineBytes);

// x from the product in `sum`, and the next block's convolution from it: x goes into `tile`, the convolution's weights through
// `stages`. Nobody may be reading either. `done_reading()` is called when nobody reads the tile any more; the moments then
// take the beginning of the block's shared memory.
template <class Holds, class Index, class DoneReading>
METATASNET_DEVICE void convolve_tile(Block& block, const MixArgs& args, Index index, char* tile, char* stages,
                                     Accumulators& sum, DoneReading done_reading) {
  constexpr int kPerChunk = kChunkBytes / sizeof(Bfloat16), kPerUnit = 16 / sizeof(Bfloat16);
  const PointwiseArgs& next = args.next;
  const int chunks = padded(args.residual) / kPerChunk;
  const auto load = [&](char* stage, int chunk) {
    const auto* weights =
        static_cast<const Bfloat16*>(next.weights) + block.z() % next.instruments * next.weights_instrument;
    load_weights<InBfloat16>(block, stage, weights, next.ld_weights, 0, next.outputs, chunk);
  };
  begin_loading<Holds>(block, stages, chunks, load);  // on their way while x is written

  const int pads = (padded(args.residual) - args.residual) / kPerUnit;
  for (int i = block.thread(); i < kTile * pads; i += kThreads) {
    const int row = i / pads, channel = args.residual + i % pads * kPerUnit;
    store_words(tile + channel / kPerChunk * kFrameBytes + unit_offset(row, channel % kPerChunk / kPerUnit), Words{});
  }
  const auto keep = [&](int row, int channel, float y0, float y1) {
    char* const at = tile + channel / kPerChunk * kFrameBytes + unit_offset(row, channel % kPerChunk / kPerUnit);
    store_pair(reinterpret_cast<Bfloat16*>(at) + channel % kPerUnit, y0, y1);
  };
  add_outputs(block, args, sum, block.z(), std::int64_t{index()} * kTile, 0, keep);
  block.forget();  // addresses of both products at once would not fit beside the accumulators
  const WarpPlace place(block);
  const bool active = std::int64_t{index()} * kTile + place.row < next.frames && place.column < next.outputs;
  clear(sum);
  // Its first barrier comes before anybody reads the tile.
  multiply_loaded<InBfloat16, Holds, false>(block, stages, tile, chunks, active, 0.0f, load, sum);
  done_reading();
  write_outputs<Bfloat16>(block, next, sum, block.z(), std::int64_t{index()} * kTile, 0);
  write_moments(block, next, sum, block.z(), index(), 0);
  finish_tile<kThreads>(block, next.statistics, next.frames, block.z(), index());
}

// For bfloat16, and B and H of one tile of outputs: in float32 the tile would leave room for one block only.
// Grid: as above. The first tile of outputs has all of x; its blocks go on to the next block's convolution.
struct MixConv {
  using Args = MixArgs;
  static constexpr int threads = kThreads;
  static constexpr int blocks = 2;

  static METATASNET_DEVICE void run(Block& block, const Args& args) {
    const std::int64_t first_frame = static_cast<std::int64_t>(block.x()) * kTile;
    const int first_output = block.y() * kColumns;
    Accumulators sum;
    pointwise_product<InBfloat16, From::frames>(block, args.product, block.z(), first_frame, first_output, sum);
    if (first_output > 0) {
      add_outputs(block, args, sum, block.z(), first_frame, first_output, [](int, int, float, float) {});
    } else {
      convolve_tile<WeightsAlone<kStages>>(
          block, args, [&] { return block.x(); }, block.shared(), block.shared() + kTileBytes, sum, [] {});
    }
  }
};

}  // namespace metatasnet::METATASNET_DEVICES
