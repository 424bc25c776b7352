// A group norm folded into the weights of the product behind it.
//
//   W'[u, o, k] = round(W[i, o, k] scale[u, k])
//   bias'[u, o] = bias[i, o] + sum_k (W[i, o, k] shift[u, k] - W'[u, o, k] mean[u, k])
//
// The mean is taken from the ROUNDED weights, or bfloat16 would lose ten times its accuracy when the mean is large.
// Bytes per unit: O K of weights read (from L2: the instruments' are shared by all items) and written.
#pragma once

#include "cuda/tile.h"

namespace metatasnet::METATASNET_DEVICES {

struct FoldArgs {
  int instruments;
  int outputs;
  // The sum's parts, each padded to a multiple of kChannels in the weights; the affine has them side by side.
  int channels[2];
  int ld;               // of the weights
  const float* source;  // (instruments, outputs, ld)
  const float* bias;    // (instruments, outputs), null: none
  int ld_affine;
  const float* affine;  // (units, 3, ld_affine)
  void* weights;        // (units, outputs, ld)
  float* folded_bias;   // (units, outputs)
};

// Grid: groups of eight outputs, 1, units. One warp for each output.
template <class Arithmetic>
struct Fold {
  using Args = FoldArgs;
  static constexpr int threads = 8 * kWarp;
  static constexpr int blocks = 4;

  static METATASNET_DEVICE void run(Block& block, const Args& args) {
    using Element = typename Arithmetic::Element;
    const int unit = block.z(), output = block.x() * 8 + block.warp();
    if (output >= args.outputs) return;
    const std::int64_t row = static_cast<std::int64_t>(unit % args.instruments) * args.outputs + output;
    const std::int64_t out = static_cast<std::int64_t>(unit) * args.outputs + output;
    const float* source = args.source + row * args.ld;
    const float* affine = args.affine + static_cast<std::int64_t>(unit) * 3 * args.ld_affine;
    auto* weights = static_cast<Element*>(args.weights) + out * args.ld;
    const int border = padded(args.channels[0]);
    float sum = 0.0f;
    for (int k = block.lane(); k < args.ld; k += kWarp) {
      const int part = k < border ? 0 : 1, place = k - (part ? border : 0);
      float rounded = 0.0f;
      if (place < args.channels[part]) {
        const int c = place + (part ? args.channels[0] : 0);
        const float weight = source[k];
        rounded = Arithmetic::rounded(weight * affine[c]);
        sum += weight * affine[2 * args.ld_affine + c] - rounded * affine[args.ld_affine + c];
      }
      weights[k] = stored<Element>(rounded);
    }
#pragma unroll
    for (int mask = 1; mask < kWarp; mask *= 2) sum += block.shuffle_xor(sum, mask);
    if (block.lane() == 0) args.folded_bias[out] = sum + (args.bias ? args.bias[row] : 0.0f);
  }
};

}  // namespace metatasnet::METATASNET_DEVICES
