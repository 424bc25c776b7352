// A group norm folded into the weights of the product after it.
//
//   W'[u, o, k] = round(W[i, o, k] scale[u, k])
//   bias'[u, o] = bias[i, o] + sum_k (W[i, o, k] shift[u, k] - W'[u, o, k] mean[u, k])
//
// The mean is taken from the ROUNDED weights, or bfloat16 would lose ten times its accuracy when the mean is large.
// Bytes per unit: O K of weights read (from L2: the instruments' are shared by all items) and written.
#pragma once

#include "cuda/tile.h"

namespace metatasnet::METATASNET_DEVICES {

// Destination of a range of the outputs.
struct FoldTarget {
  void* weights;          // (outputs, ld) of each unit
  std::int64_t unit;      // elements from unit to unit
  int ld;
  float* bias;            // (units, outputs)
  int outputs;
  bool add;               // add to the existing bias, for a sum of several products
};

struct FoldArgs {
  int instruments;
  FoldTarget to[2];  // one after the other
  // The sum's parts, each padded to a multiple of kChannels in the weights; the affine has them side by side.
  int channels[2];
  int ld;               // distance of the source's rows
  const float* source;  // (instruments, outputs, ld)
  const float* bias;    // (instruments, outputs), null: none
  int ld_affine;
  const float* affine;  // (units, 3, ld_affine)
};

// Grid: groups of eight outputs, 1, units. Each warp computes one output.
template <class Arithmetic>
struct Fold {
  using Args = FoldArgs;
  static constexpr int threads = 8 * kWarp;
  static constexpr int blocks = 4;
  static constexpr int kAtOnce = 5;  // loads that a lane issues together; 160 inputs need no more

  static METATASNET_DEVICE void run(Block& block, const Args& args) {
    using Element = typename Arithmetic::Element;
    const int unit = block.z(), output = block.x() * 8 + block.warp();
    const int outputs = args.to[0].outputs + args.to[1].outputs;
    if (output >= outputs) return;
    const FoldTarget& to = args.to[output < args.to[0].outputs ? 0 : 1];
    const int own = output < args.to[0].outputs ? output : output - args.to[0].outputs;
    const std::int64_t row = static_cast<std::int64_t>(unit % args.instruments) * outputs + output;
    const float* source = args.source + row * args.ld;
    const float* affine = args.affine + static_cast<std::int64_t>(unit) * 3 * args.ld_affine;
    auto* weights = static_cast<Element*>(to.weights) + unit * to.unit + static_cast<std::int64_t>(own) * to.ld;
    const int border = padded(args.channels[0]);
    float sum = 0.0f;
#pragma unroll 1
    for (int first = block.lane(); first < args.ld; first += kAtOnce * kWarp) {
      float weight[kAtOnce], scale[kAtOnce], mean[kAtOnce], shift[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int k = first + j * kWarp, part = k < border ? 0 : 1, place = k - (part ? border : 0);
        const bool there = k < args.ld && place < args.channels[part];
        const int c = place + (part ? args.channels[0] : 0);
        weight[j] = there ? source[k] : 0.0f;
        scale[j] = there ? affine[c] : 0.0f;
        mean[j] = there ? affine[args.ld_affine + c] : 0.0f;
        shift[j] = there ? affine[2 * args.ld_affine + c] : 0.0f;
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const float rounded = Arithmetic::rounded(weight[j] * scale[j]);
        sum += weight[j] * shift[j] - rounded * mean[j];
        if (first + j * kWarp < args.ld) weights[first + j * kWarp] = stored<Element>(rounded);
      }
    }
#pragma unroll
    for (int mask = 1; mask < kWarp; mask *= 2) sum += block.shuffle_xor(sum, mask);
    if (block.lane() > 0) return;
    float* const bias = to.bias + static_cast<std::int64_t>(unit) * to.outputs + own;
    sum += args.bias ? args.bias[row] : 0.0f;
    *bias = to.add ? *bias + sum : sum;
  }
};

}  // namespace metatasnet::METATASNET_DEVICES
