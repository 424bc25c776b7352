#include "cpu/group_norm.h"

#include <cmath>

namespace metatasnet {

void group_norm(const double* mean, const double* m2, std::int64_t frames, int channels, const NormWeights& weights,
                Affine& out, GroupStatistics* kept) {
  const int width = channels / kGroups;
  for (int g = 0; g < kGroups; ++g) {
    const int first = g * width;
    double centre = 0.0, deviations = 0.0;
    for (int c = first; c < first + width; ++c) centre += mean[c];
    centre /= width;
    for (int c = first; c < first + width; ++c) {
      deviations += m2[c] + static_cast<double>(frames) * (mean[c] - centre) * (mean[c] - centre);
    }
    const double variance = deviations / (static_cast<double>(frames) * width);
    const double rstd = 1.0 / std::sqrt(variance + kEpsilon);
    if (kept) {
      kept->mean[g] = static_cast<float>(centre);
      kept->rstd[g] = static_cast<float>(rstd);
    }
    for (int c = first; c < first + width; ++c) {
      out.scale[c] = static_cast<float>(weights.scale[c] * rstd);
      out.mean[c] = static_cast<float>(centre);
      out.shift[c] = weights.shift[c];
    }
  }
}

}  // namespace metatasnet
