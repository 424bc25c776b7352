// Mean and sum of squared deviations of the columns of a tile, in one pass.
//
// Deviations are taken from the column's first value, so that the difference of sums stays accurate on constant and
// offset signals: a silent or constant column gives exactly 0.
#pragma once

#include "cpu/isa/vector.h"
#include "cpu/passes.h"

namespace metatasnet::METATASNET_ISA {

struct ColumnMoments {
  Vec pivot[kVectors], sum[kVectors], squares[kVectors];

  METATASNET_INLINE void begin() {
    for (int v = 0; v < kVectors; ++v) pivot[v] = sum[v] = squares[v] = Vec{};
  }

  METATASNET_INLINE void add(int v, Vec y) {
    const Vec d = y - pivot[v];
    sum[v] += d;
    squares[v] = d * d + squares[v];
  }

  METATASNET_INLINE void end(const Moments& out, int column, int rows) const {
    const float count = static_cast<float>(rows);
    for (int v = 0; v < kVectors; ++v) {
      const Vec offset = sum[v] / splat(count);
      store(out.mean + column + v * kLanes, pivot[v] + offset);
      store(out.m2 + column + v * kLanes, maximum(Vec{}, squares[v] - sum[v] * offset));
    }
  }
};

}  // namespace metatasnet::METATASNET_ISA
