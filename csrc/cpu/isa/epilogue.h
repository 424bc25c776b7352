// What happens to a register tile of a product before it leaves the registers.
#pragma once

#include "cpu/isa/gemm.h"
#include "cpu/isa/gemm_tiles.h"
#include "cpu/isa/modes.h"
#include "cpu/isa/moments.h"

namespace metatasnet::METATASNET_ISA {

// Bias of a panel's columns; a null pointer is no bias.
struct PanelBias {
  const float* values;
  Vec of[kVectors];

  METATASNET_INLINE void begin(int panel) {
    for (int v = 0; v < kVectors; ++v) of[v] = values ? load(values + panel * kPanel + v * kLanes) : Vec{};
  }
};

// out = prelu(product + bias) as stored, with the moments of its columns; in training also the value before the PReLU.
template <class T, class Kept = T>
struct Activate {
  T* out;
  Kept* kept;
  std::ptrdiff_t ld;  // of both
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
    if (kept) {
#pragma GCC unroll 16
      for (int i = 0; i < kTileRows; ++i) {
        if (!kFull && i >= valid) break;
        const Vec values[kVectors] = {acc[i][0] + bias.of[0], acc[i][1] + bias.of[1]};
        stream(kept + (first + i) * ld + panel * kPanel, values);
      }
    }
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      T* at = out + first * ld + panel * kPanel + v * kLanes;
#pragma GCC unroll 16
      for (int i = 0; i < kTileRows; ++i) {
        if (!kFull && i >= valid) break;
        const Vec y = store_rounded(at + i * ld, prelu(acc[i][v] + bias.of[v], slope));
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
