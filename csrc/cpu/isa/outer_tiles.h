// The sum over frames of gradient.h for bfloat16 operands in the tile registers of AMX.
//
// Units of `b` are tiles of weights as they lie: 16 units of 16 channels. Those of `a` are turned first, a panel and a
// block of units at a time, so that a row of a tile holds 16 units of one channel; all column panels use them. The sums
// are loaded from the weight gradient and stored there: 8 KiB for up to 96 multiplications of 16 cycles.
#pragma once

#include "cpu/backward_passes.h"
#include "cpu/isa/gemm_tiles.h"

#if defined(__AMX_BF16__)

namespace metatasnet::METATASNET_ISA {

constexpr int kOuterBlock = 384;              // units of a panel that are turned at a time: 48 KiB
constexpr int kTurnedRow = kOuterBlock + 16;  // an odd number of cache lines: the rows of a tile lie in different sets

// out[c * ld + u] = in[u][c] for 16 units of 16 channels.
//
// Rows i, 4 + i, 8 + i and 12 + i of four channels share a vector, so that four-by-four transposes inside its quarters
// finish the work: 64 loads, half as many shuffles as from whole rows.
METATASNET_INLINE void turn(const char* in, std::ptrdiff_t unit, float* out, std::ptrdiff_t ld) {
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
    __m512 row[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const auto quarter = [&](int l) METATASNET_INLINE_LAMBDA {
        return _mm_loadu_ps(reinterpret_cast<const float*>(in + (4 * l + i) * unit) + 4 * g);
      };
      row[i] = _mm512_maskz_broadcast_f32x4(0x000f, quarter(0));
      row[i] = _mm512_mask_broadcast_f32x4(row[i], 0x00f0, quarter(1));
      row[i] = _mm512_mask_broadcast_f32x4(row[i], 0x0f00, quarter(2));
      row[i] = _mm512_mask_broadcast_f32x4(row[i], 0xf000, quarter(3));
    }
    // Masked with all lanes: GCC 12 warns of its own unmasked intrinsics.
    const auto low = [](__m512 a, __m512 b) METATASNET_INLINE_LAMBDA {
      return _mm512_castps_pd(_mm512_maskz_unpacklo_ps(0xffff, a, b));
    };
    const auto high = [](__m512 a, __m512 b) METATASNET_INLINE_LAMBDA {
      return _mm512_castps_pd(_mm512_maskz_unpackhi_ps(0xffff, a, b));
    };
    const __m512d pairs[2][2] = {{low(row[0], row[1]), low(row[2], row[3])},
                                 {high(row[0], row[1]), high(row[2], row[3])}};
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      float* at = out + (4 * g + 2 * i) * ld;
      store(at, (Vec)_mm512_maskz_unpacklo_pd(0xff, pairs[i][0], pairs[i][1]));
      store(at + ld, (Vec)_mm512_maskz_unpackhi_pd(0xff, pairs[i][0], pairs[i][1]));
    }
  }
}

// The units [first, first + 16) of a panel's 32 channels.
METATASNET_INLINE void turn_panel(const char* in, std::ptrdiff_t unit, int first, float (*turned)[kTurnedRow]) {
  turn(in, unit, turned[0] + first, kTurnedRow);
  turn(in + kTileBytes, unit, turned[kTileHeight] + first, kTurnedRow);
}

// Up to a tile's units of a panel, followed by zeros.
struct LastUnits {
  alignas(64) float values[kTileUnits][kPanel];

  METATASNET_INLINE const char* take(const char* at, std::ptrdiff_t unit, int units) {
    for (int u = 0; u < kTileUnits; ++u) {
      const auto* from = reinterpret_cast<const float*>(at + u * unit);
      for (int v = 0; v < kVectors; ++v) store(values[u] + v * kLanes, u < units ? load(from + v * kLanes) : Vec{});
    }
    return bytes_of(values[0]);
  }
};

// See outer() in gradient.h.
METATASNET_INLINE void outer_tiles(const Units& a, int row_panels, const Units& b, int first, int last, int units,
                                   const WeightSum& sum, Ahead& ahead) {
  alignas(64) float turned[kPanel][kTurnedRow];
  LastUnits rest;
  const std::ptrdiff_t stride = sum.ld * 4, turned_stride = kTurnedRow * 4;
  configure_tiles();
  for (int begin = 0; begin < units; begin += kOuterBlock) {
    const int count = units - begin < kOuterBlock ? units - begin : kOuterBlock;
    const int remaining = count % kTileUnits, whole = count - remaining;
    for (int p = 0; p < row_panels; ++p) {
      const char* a_at = a.data + p * a.panel + begin * a.unit;
      for (int u = 0; u < whole; u += kTileUnits) turn_panel(a_at + u * a.unit, a.unit, u, turned);
      if (remaining) turn_panel(rest.take(a_at + whole * a.unit, a.unit, remaining), kPanelBytes, whole, turned);
      for (int q = first; q < last; ++q) {
        const char* b_at = b.data + q * b.panel + begin * b.unit;
        float* at = sum.values + p * kPanel * sum.ld + q * kPanel;
        ahead.step(kLinesAhead);
        if (q + 1 < last) prefetch_tile<kPanel>(at + kPanel, sum.ld);
        const char* b_rest = remaining ? rest.take(b_at + whole * b.unit, b.unit, remaining) : nullptr;
        publish(turned);
        if (sum.empty && begin == 0) {
          zero_sums();
        } else {
          load_sums(at, stride);
        }
        multiply_tiles(bytes_of(turned[0]), turned_stride, b_at, b.unit, whole);
        if (remaining) multiply_tiles(bytes_of(turned[0] + whole), turned_stride, b_rest, kPanelBytes, kTileUnits);
        store_sums(at, stride);
      }
    }
  }
  _tile_release();
}

}  // namespace metatasnet::METATASNET_ISA

#endif
