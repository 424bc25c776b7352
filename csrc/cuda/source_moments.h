// Moments of the input of the masking network's first norm: prelu(source), rounded as the first product reads it.
//
//   statistics of round(prelu(a[u, t, c]))
//
// Bytes per unit: T C read. The instruments share the mixture's latent, whose moments are computed once. In bfloat16 a block has 64
// channels, stored in shared memory as they are activated and added up on tensor cores: predicted on an H100, bound by memory; by
// additions it was bound by instructions, twice as many.
#pragma once

#include "cuda/pointwise.h"

namespace metatasnet::METATASNET_DEVICES {

struct SourceMomentsArgs {
  int instruments;
  std::int64_t frames;
  Frames source;
  int ld;
  float slope;
  Statistics statistics;
};

// Grid: tiles of frames, groups of `columns` channels, units.
template <class Arithmetic>
struct SourceMoments {
  using Args = SourceMomentsArgs;
  static constexpr int threads = kRowWarps * kWarp;
  static constexpr int blocks = 4;
  static constexpr bool stored = std::is_same_v<Arithmetic, InBfloat16>;  // the values are as they are stored
  static constexpr int columns = stored ? 2 * kChannels : kChannels;
  static constexpr int shared_bytes = stored ? StoredTile<columns>::bytes : MomentsSpace<columns>::bytes;

  static METATASNET_DEVICE void run(Block& block, const Args& args) {
    if constexpr (stored) {
      activate(block, args);
      finish_stored<threads, columns>(block, args.statistics, block.z(), block.x(), block.y());
    } else {
      bring(block, args);
    }
  }

 private:
  using Element = typename Arithmetic::Element;

  // The first frame of this block, at channel `channel`.
  static METATASNET_DEVICE const Element* source_at(const Block& block, const Args& args, int channel) {
    const int item = block.z() / args.instruments, instrument = block.z() % args.instruments;
    return static_cast<const Element*>(args.source.data) + item * args.source.item + instrument * args.source.instrument +
           std::int64_t{block.x()} * kTile * args.source.row + channel;
  }

  // The tile in shared memory, activated; a thread has eight channels of every 16th row.
  static METATASNET_DEVICE void activate(Block& block, const Args& args) {
    constexpr int kRowUnits = columns / 8, kApart = threads / kRowUnits, kEach = kTile / kApart;
    const int row = block.thread() / kRowUnits, unit = block.thread() % kRowUnits, channel = block.y() * columns + 8 * unit;
    const int rows = channel < args.source.channels ? frames_from(args.frames, std::int64_t{block.x()} * kTile, kTile) : 0;
    const Element* const from = source_at(block, args, channel) + row * args.source.row;
    Words words[kEach] = {};
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      if (row + kApart * j < rows) words[j] = load_words(from + kApart * j * args.source.row);
    }
    char* const to = block.shared() + StoredTile<columns>::place(row, unit);
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
#pragma unroll
      for (std::uint32_t& word : words[j].word) word = Arithmetic::template operand<true>(word, args.slope);
      store_words(to + kApart * j * StoredTile<columns>::pitch, words[j]);
    }
  }

  static METATASNET_DEVICE void bring(Block& block, const Args& args) {
    const int lane = block.lane(), part = lane % 4;
    const int channel = block.y() * kChannels + part * 8;
    const std::int64_t begin = static_cast<std::int64_t>(block.x()) * kTile;
    const Element* const source = source_at(block, args, channel);
    Eight y[4] = {};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int row = block.warp() * kWarpRows + 8 * j + lane / 4;
      if (begin + row >= args.frames || channel >= args.source.channels) continue;
      y[j] = load_eight(source + row * args.source.row);
#pragma unroll
      for (int c = 0; c < 8; ++c) y[j].v[c] = Arithmetic::rounded(prelu(y[j].v[c], args.slope));
    }
    finish_channels<threads, Element>(block, args.statistics, y);
  }
};

}  // namespace metatasnet::METATASNET_DEVICES
