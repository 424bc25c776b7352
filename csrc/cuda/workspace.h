// The device memory that each job needs while it runs, and the number of items that it processes together.
#pragma once

#include "cuda/norm.h"
#include "cuda/stage.h"

namespace metatasnet::METATASNET_DEVICES {

// Items that a job processes together: the fewest that give each multiprocessor two tiles and leave it idle for less
// than a twentieth of the time while others have one tile more; eight tiles are always enough. Results do not depend on
// it.
inline std::int64_t items_at_once(std::int64_t items, std::int64_t frames, int instruments) {
  const std::int64_t each = std::int64_t{instruments} * tiles_of(frames);
  for (std::int64_t some = 1; some < items; ++some) {
    const std::int64_t tiles = some * each, most = (tiles + kMultiprocessors - 1) / kMultiprocessors;
    if (most >= 8 || (most >= 2 && 20 * tiles >= 19 * most * kMultiprocessors)) return some;
  }
  return items;
}

// Hands out parts of one allocation at multiples of 256 bytes; without an allocation it only adds up sizes.
class Arena {
 public:
  explicit Arena(char* base) : base_(base) {}

  template <class T>
  T* take(std::int64_t count) {
    char* const at = base_ ? base_ + bytes_ : nullptr;
    bytes_ += (count * static_cast<std::int64_t>(sizeof(T)) + 255) / 256 * 256;
    return reinterpret_cast<T*>(at);
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  std::int64_t bytes_ = 0;
};

template <class Element>
struct EncodeBuffers {
  float *log_power, *mel, *share;
  Element *bank, *hidden;

  EncodeBuffers(Arena& arena, const Sizes& s, std::int64_t items, std::int64_t samples) {
    const std::int64_t frames = samples / s.W, others = s.spectrogram_frames(samples);
    log_power = arena.take<float>(items * others * padded(s.bins()));
    mel = arena.take<float>(items * others * padded(s.mels));
    share = arena.take<float>(items * others * padded(s.N));
    bank = arena.take<Element>(items * frames * padded(s.bank));
    hidden = arena.take<Element>(items * frames * padded(s.N));
  }
};

template <class Element>
struct MaskBuffers {
  float* x;                      // (units, frames, padded(B))
  Element* operand;              // x in the form that products read; null if they read x itself
  Element* a;                    // hidden activations before the depthwise convolution
  Element* hidden;               // those after it, of all blocks: (units, frames, blocks, padded(H))
  Moments* moments;              // moments of the parts of one pass
  Moments *latent_moments, *partial_moments;
  int* arrived;                  // (units): zero between passes; then the same for the persistent launch
  float *affine, *affine_2;      // affine_2: of a block's second norm, made by the pass that reads affine
  Element *folded, *folded_skip;
  float *folded_bias, *skip_bias;

  MaskBuffers(Arena& arena, const Sizes& s, std::int64_t items, std::int64_t frames, bool own_inputs) {
    const std::int64_t units = items * s.instruments, tiles = tiles_of(frames), rows = units * frames;
    const int b_ld = padded(s.B), h_ld = padded(s.H), n_ld = padded(s.N), in_ld = n_ld + padded(s.partial);
    const int inner = h_ld > b_ld ? h_ld : b_ld, widest = inner > n_ld ? inner : n_ld;
    x = arena.take<float>(rows * b_ld);
    operand = sizeof(Element) == sizeof(float) ? nullptr : arena.take<Element>(rows * b_ld);
    a = arena.take<Element>(rows * inner);
    hidden = arena.take<Element>(rows * s.blocks() * h_ld);
    // Most parts of any pass: those of the elementwise ones.
    const auto moments_of = [&](std::int64_t of_units, int ld) {
      return arena.take<Moments>(of_units * tiles * (ld / kChannels) * kGroups);
    };
    moments = moments_of(units, widest > 2 * kChannels ? widest : 2 * kChannels);  // the persistent launch has two of each
    latent_moments = moments_of(own_inputs ? units : items, n_ld);
    partial_moments = moments_of(units, padded(s.partial));
    arrived = arena.take<int>(2 * units);
    affine = arena.take<float>(units * 5 * (in_ld > widest ? in_ld : widest));
    affine_2 = arena.take<float>(units * 3 * h_ld);
    std::int64_t matrix = std::int64_t{s.B} * in_ld;
    if (matrix < std::int64_t{s.B} * h_ld) matrix = std::int64_t{s.B} * h_ld;
    if (matrix < std::int64_t{s.N} * b_ld) matrix = std::int64_t{s.N} * b_ld;
    folded = arena.take<Element>(units * matrix);
    folded_bias = arena.take<float>(units * (s.B > s.N ? s.B : s.N));
    folded_skip = arena.take<Element>(units * s.B * s.blocks() * h_ld);
    skip_bias = arena.take<float>(units * s.B);
  }
};

template <class Element>
struct DecodeBuffers {
  Element* wide;  // (items, frames, padded(wide))

  DecodeBuffers(Arena& arena, const Sizes& s, std::int64_t items, std::int64_t frames) {
    wide = arena.take<Element>(items * frames * padded(s.wide));
  }
};

}  // namespace metatasnet::METATASNET_DEVICES
