#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kept.h"

namespace metatasnet {

// Scale, mean and shift of each channel: n(x) = (x - mean) scale + shift. Padded with zeros.
struct Affine {
  std::vector<float> scale, mean, shift;

  explicit Affine(int channels) : scale(padded(channels)), mean(padded(channels)), shift(padded(channels)) {}
};

// Group norm (biased variance) from the moments of its channels, each over `frames` values. Stores its statistics in
// `kept` unless that is null.
void group_norm(const double* mean, const double* m2, std::int64_t frames, int channels, const NormWeights& weights,
                Affine& out, GroupStatistics* kept);

}  // namespace metatasnet
