// Passes over activations without a product: the norm before the blocks, and the masks at the end.
#pragma once

#include "cuda/pointwise.h"

namespace metatasnet::METATASNET_DEVICES {

// x = (x - mean) scale + shift in place, with a copy in the form that the first block's product reads.
struct NormaliseArgs {
  std::int64_t frames;
  int ld;
  const float* affine;  // (units, 3, ld)
  float* x;             // (units, frames, ld)
  void* operand;        // the copy; null if the product reads x itself
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

// masked[n, i, t, c] = latent[n, t, c] mask_i((masked[n, i, t, c] - mean) scale + shift), in place.
// The masks are a softmax over the first `softmax` instruments, and a sigmoid of each other one.
// Bytes: the logits once in and once out, the latent once. Source: original model/mask_tcn.py.
struct MaskProductArgs {
  int instruments, softmax;
  std::int64_t frames;
  Frames latent;
  int ld;
  const float* affine;  // (units, 3, ld)
  void* masked;         // (units, frames, ld)
};

constexpr int kFewInstruments = 4;

// Grid: parts of an item's vectors of channels of kFrames frames, 1, items. A thread holds the logits of up to `most`
// instruments: of eight channels for a few instruments, of two for many. Its channels are the same in all its frames,
// so that the norm comes from the first-level cache.
template <class Element, int most>
struct MaskProduct {
  using Args = MaskProductArgs;
  static constexpr int threads = 256;
  static constexpr int blocks = 2;
  static constexpr int channels = most <= kFewInstruments ? 8 : 2;
  static constexpr int kFrames = 4;  // frames of a thread
  using Several = Vector<channels>;

  static METATASNET_DEVICE void run(Block& block, const Args& args) {
    const int vectors = args.ld / channels;
    const std::int64_t i = static_cast<std::int64_t>(block.x()) * threads + block.thread();
    const int channel = static_cast<int>(i % vectors) * channels;
    const std::int64_t first = i / vectors * kFrames;
#pragma unroll 1
    for (std::int64_t frame = first; frame < first + kFrames && frame < args.frames; ++frame) {
      of_frame(args, block.z(), frame, channel);
    }
  }

 private:
  static METATASNET_DEVICE void of_frame(const Args& args, int item, std::int64_t frame, int channel) {
    const std::int64_t unit_size = args.frames * args.ld, first_unit = std::int64_t{item} * args.instruments;
    auto* masked = static_cast<Element*>(args.masked) + first_unit * unit_size + frame * args.ld + channel;
    Several logits[most] = {}, latent = {};
    if (channel < args.latent.channels) {
      const auto* from = static_cast<const Element*>(args.latent.data) + item * args.latent.item;
      latent = load_vector<channels>(from + frame * args.latent.row + channel);
#pragma unroll
      for (int k = 0; k < most; ++k) {
        if (k < args.instruments) logits[k] = load_vector<channels>(masked + k * unit_size);
      }
#pragma unroll
      for (int k = 0; k < most; ++k) {
        if (k >= args.instruments) break;
        const float* affine = args.affine + (first_unit + k) * 3 * args.ld + channel;
        const Several scale = load_vector<channels>(affine), mean = load_vector<channels>(affine + args.ld);
        const Several shift = load_vector<channels>(affine + 2 * args.ld);
#pragma unroll
        for (int c = 0; c < channels; ++c) logits[k].v[c] = (logits[k].v[c] - mean.v[c]) * scale.v[c] + shift.v[c];
      }
    }
    Several highest = logits[0], sum = {};
#pragma unroll
    for (int k = 1; k < most; ++k) {
      if (k >= args.softmax) break;
#pragma unroll
      for (int c = 0; c < channels; ++c) highest.v[c] = fmaxf(highest.v[c], logits[k].v[c]);
    }
#pragma unroll
    for (int k = 0; k < most; ++k) {
      if (k >= args.softmax) break;
#pragma unroll
      for (int c = 0; c < channels; ++c) sum.v[c] += logits[k].v[c] = expf(logits[k].v[c] - highest.v[c]);
    }
    Several factor = {};
#pragma unroll
    for (int c = 0; c < channels; ++c) factor.v[c] = args.softmax ? latent.v[c] / sum.v[c] : 0.0f;
#pragma unroll
    for (int k = 0; k < most; ++k) {
      if (k >= args.instruments) break;
      if (k < args.softmax) {
#pragma unroll
        for (int c = 0; c < channels; ++c) logits[k].v[c] *= factor.v[c];
      } else {  // a sigmoid is a softmax over the logit and 0
#pragma unroll
        for (int c = 0; c < channels; ++c) {
          const float most_of = fmaxf(logits[k].v[c], 0.0f), own = expf(logits[k].v[c] - most_of);
          logits[k].v[c] = latent.v[c] * (own / (own + expf(-most_of)));
        }
      }
      store_vector(masked + k * unit_size, logits[k]);
    }
  }
};

}  // namespace metatasnet::METATASNET_DEVICES
