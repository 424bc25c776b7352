// Frames and samples of the encoder and decoder: padding, interpolation and overlap.
#pragma once

#include <cstdint>
#include <functional>

#include "cpu/stage.h"

namespace metatasnet {

// Positions in the spectrogram at which the frames of a tile interpolate it, corners aligned.
struct Interpolation {
  std::int64_t frame[kTile], next[kTile];
  float weight[kTile];

  Interpolation(std::int64_t first, int rows, std::int64_t frames, std::int64_t mel_frames);
};

// The windows of a tile's frames overlap. This is how many samples hold them all, with whole panels for the last
// window.
inline std::int64_t window_of(const StageSizes& s, std::int64_t frames) {
  return frames * s.W + s.longest() + kChannels;
}

// Return values[first, first + count), with zeros outside [0, length).
void copy_padded(const float* values, std::int64_t length, std::int64_t first, std::int64_t count, float* to);

// A tile of frames that one thread adds to samples. Neighbouring tasks both compute the frames that overlap their
// border; but each frame belongs to only one task, the one in which it lies in [begin, end).
struct OverlapTile {
  int member;
  std::int64_t item, first, begin, end;
  int rows;
  float* samples;  // the window of the tile's first frame begins here
};

// Write signal (n, samples), the sum of overlapping frames; there are samples / W frames. `prepare` gets the number of
// threads; `add` adds a tile's frames.
void overlapping(const Stage& stage, std::int64_t n, std::int64_t samples, float* signal, int threads,
                 const std::function<void(int)>& prepare, const std::function<void(const OverlapTile&)>& add);

}  // namespace metatasnet
