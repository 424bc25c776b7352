// Epilogues: operations on a product's register tile before it is stored.
#pragma once

#include "cpu/isa/gemm.h"
#include "cpu/isa/gemm_tiles.h"
#include "cpu/isa/modes.h"
#include "cpu/isa/moments.h"

namespace metatasnet::METATASNET_ISA {

// Bias of a panel's columns; null means no bias.
struct PanelBias {
  const float* values;
  Vec of[kVectors];

  METATASNET_INLINE void begin(int panel) {
    for (int v = 0; v < kVectors; ++v) of[v] = values ? load(values + panel * kPanel + v * kLanes) : Vec{};
  }
};

// out = prelu(product + bias), as stored, with the moments of its columns. In training the value before the PReLU is
// stored, too. The result is then computed from that stored, rounded value, as the backward pass will compute it, so
// that its values match the norm's statistics exactly. (If the values hardly vary, a different rounding would differ by
// many of their standard deviations.)
template <class T, class Kept = T>
struct Activate {
  T* out;
  Kept* kept;
  std::ptrdiff_t ld;  // distance of the rows of both outputs
  PanelBias bias;
  Vec slope;
  Moments moments;
  int rows;
  ColumnMoments columns;

  METATASNET_INLINE void begin(int panel) {
    bias.begin(panel);
    columns.begin();
  }

  template <int kTileRows>
  METATASNET_INLINE void prefetch(int panel, int first) {
    prefetch_tile<kTileRows>(out + first * ld + panel * kPanel, ld);
  }

  template <bool kFull, int kTileRows>
  METATASNET_INLINE void tile(int panel, int first, int valid, Accumulators<kTileRows>& acc) {
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i)
      for (int v = 0; v < kVectors; ++v) acc[i][v] += bias.of[v];
    if (kept) {
#pragma GCC unroll 16
      for (int i = 0; i < kTileRows; ++i) {
        if (!kFull && i >= valid) break;
        stream(kept + (first + i) * ld + panel * kPanel, acc[i]);
        for (int v = 0; v < kVectors; ++v) acc[i][v] = activated<Kept>(as_stored<Kept>(acc[i][v]), slope);
      }
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < kTileRows; ++i)
        for (int v = 0; v < kVectors; ++v) acc[i][v] = prelu(acc[i][v], slope);
    }
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      T* at = out + first * ld + panel * kPanel + v * kLanes;
#pragma GCC unroll 16
      for (int i = 0; i < kTileRows; ++i) {
        if (!kFull && i >= valid) break;
        const Vec y = store_rounded(at + i * ld, acc[i][v]);
        if (i == 0 && first == 0) columns.pivot[v] = y;
        columns.add(v, y);
      }
    }
  }

  METATASNET_INLINE void end(int panel) {
    columns.end(moments, panel * kPanel, rows);
    if (kept) stream_end();
  }
};

}  // namespace metatasnet::METATASNET_ISA
