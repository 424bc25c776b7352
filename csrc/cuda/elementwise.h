// Passes over activations without a product: the norm in front of the blocks, and the masks at the end.
#pragma once

#include "cuda/pointwise.h"

namespace metatasnet::METATASNET_DEVICES {

// x = (x - mean) scale + shift in place, and a copy as the first block's product reads it.
struct NormaliseArgs {
  std::int64_t frames;
  int ld;
  const float* affine;  // (units, 3, ld)
  float* x;             // (units, frames, ld)
  void* operand;        // likewise; null where that is x itself
};

// Grid: parts of a unit's vectors of eight channels, 1, units.
template <class Element>
struct Normalise {
  using Args = NormaliseArgs;
  static constexpr int threads = 256;
  static constexpr int blocks = 4;

  static METATASNET_DEVICE void run(Block& block, const Args& args) {
    const int unit = block.z(), vectors = args.ld / 8;
    const std::int64_t i = static_cast<std::int64_t>(block.x()) * threads + block.thread();
    if (i >= args.frames * vectors) return;
    const int channel = static_cast<int>(i % vectors) * 8;
    const std::int64_t at = static_cast<std::int64_t>(unit) * args.frames * args.ld + i * 8;
    const float* affine = args.affine + static_cast<std::int64_t>(unit) * 3 * args.ld + channel;
    const Eight scale = load_eight(affine), mean = load_eight(affine + args.ld), shift = load_eight(affine + 2 * args.ld);
    Eight x = load_eight(args.x + at);
#pragma unroll
    for (int c = 0; c < 8; ++c) x.v[c] = (x.v[c] - mean.v[c]) * scale.v[c] + shift.v[c];
    store_eight(args.x + at, x);
    if (args.operand) store_eight(static_cast<Element*>(args.operand) + at, x);
  }
};

// masked[n, i, t, c] = latent[n, t, c] softmax over i of ((masked[n, i, t, c] - mean) scale + shift), in place.
// Bytes: the logits once in and once out, the latent once. Source: original model/mask_tcn.py.
struct MaskProductArgs {
  std::int64_t frames;
  Frames latent;
  int ld;
  const float* affine;  // (units, 3, ld)
  void* masked;         // (units, frames, ld)
};

// Grid: parts of an item's vectors of eight channels, 1, items.
template <class Element>
struct MaskProduct {
  using Args = MaskProductArgs;
  static constexpr int threads = 256;
  static constexpr int blocks = 2;

  static METATASNET_DEVICE void run(Block& block, const Args& args) {
    const int item = block.z(), vectors = args.ld / 8;
    const std::int64_t i = static_cast<std::int64_t>(block.x()) * threads + block.thread();
    if (i >= args.frames * vectors) return;
    const int channel = static_cast<int>(i % vectors) * 8;
    const std::int64_t frame = i / vectors, unit_size = args.frames * args.ld;
    auto* masked = static_cast<Element*>(args.masked) + item * kInstruments * unit_size + i * 8;
    Eight logits[kInstruments] = {}, latent = {};
    if (channel < args.latent.channels) {
      const auto* from = static_cast<const Element*>(args.latent.data) + item * args.latent.item;
      latent = load_eight(from + frame * args.latent.row + channel);
#pragma unroll
      for (int k = 0; k < kInstruments; ++k) {
        const float* affine =
            args.affine + static_cast<std::int64_t>(item * kInstruments + k) * 3 * args.ld + channel;
        const Eight scale = load_eight(affine), mean = load_eight(affine + args.ld);
        const Eight shift = load_eight(affine + 2 * args.ld), y = load_eight(masked + k * unit_size);
#pragma unroll
        for (int c = 0; c < 8; ++c) logits[k].v[c] = (y.v[c] - mean.v[c]) * scale.v[c] + shift.v[c];
      }
    }
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      float highest = logits[0].v[c], sum = 0.0f;
#pragma unroll
      for (int k = 1; k < kInstruments; ++k) highest = fmaxf(highest, logits[k].v[c]);
#pragma unroll
      for (int k = 0; k < kInstruments; ++k) sum += logits[k].v[c] = expf(logits[k].v[c] - highest);
#pragma unroll
      for (int k = 0; k < kInstruments; ++k) logits[k].v[c] = latent.v[c] * (logits[k].v[c] / sum);
    }
#pragma unroll
    for (int k = 0; k < kInstruments; ++k) store_eight(masked + k * unit_size, logits[k]);
  }
};

}  // namespace metatasnet::METATASNET_DEVICES
