// Group-norm statistics: moments of the network's input, and the merge of the tiles' moments.
#include "cpu/isa/moments.h"
#include "cpu/isa/source.h"

namespace metatasnet::METATASNET_ISA {
namespace {

template <class Mode, class T>
void moments_of(const T* frames, const SourceMomentsArgs& a) {
  const Vec slope = splat(a.slope);
  for (int column = 0; column < a.source.channels; column += kPanel) {
    ColumnMoments columns;
    columns.begin();
    for (int r = 0; r < a.rows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        const int c = column + v * kLanes;
        typename Mode::Operand rounded[kLanes];
        const Vec x = load_first(frames + r * a.source.stride + c, a.source.channels - c);
        const Vec y = put_operand<Mode>(rounded, prelu(x, slope));
        if (r == 0) columns.pivot[v] = y;
        columns.add(v, y);
      }
    }
    columns.end(a.moments, column, a.rows);
  }
}

}  // namespace

template <class Mode>
void source_moments(const SourceMomentsArgs& a) {
  if (a.source.is_bfloat16) {
    moments_of<Mode>(static_cast<const bfloat16*>(a.source.data), a);
  } else {
    moments_of<Mode>(static_cast<const float*>(a.source.data), a);
  }
}

// mean = sum_t n_t mean_t / sum_t n_t; m2 = sum_t m2_t + n_t (mean_t - mean)^2, tile by tile in order, in float64.
template <class Mode>
void merge(const MergeArgs& a) {
  for (int c = 0; c < a.channels; ++c) a.mean[c] = a.m2[c] = 0.0;
  const auto rows_of = [&](int tile) {
    const std::int64_t left = a.frames - static_cast<std::int64_t>(tile) * kTile;
    return static_cast<double>(left < kTile ? left : kTile);
  };
  for (int tile = 0; tile < a.tiles; ++tile) {
    const float* mean = a.partials + static_cast<std::ptrdiff_t>(tile) * 2 * a.ld;
    const double share = rows_of(tile) / static_cast<double>(a.frames);
    for (int c = 0; c < a.channels; ++c) a.mean[c] += share * static_cast<double>(mean[c]);
  }
  for (int tile = 0; tile < a.tiles; ++tile) {
    const float* mean = a.partials + static_cast<std::ptrdiff_t>(tile) * 2 * a.ld;
    const float* m2 = mean + a.ld;
    const double rows = rows_of(tile);
    for (int c = 0; c < a.channels; ++c) {
      const double d = static_cast<double>(mean[c]) - a.mean[c];
      a.m2[c] += static_cast<double>(m2[c]) + rows * d * d;
    }
  }
}

METATASNET_INSTANTIATE(source_moments, SourceMomentsArgs)
METATASNET_INSTANTIATE(merge, MergeArgs)

}  // namespace metatasnet::METATASNET_ISA
