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

constexpr int kOuterBlock = 384;  // units of a panel that are turned at a time: 48 KiB

// out[c][u] = in[u][c] for 16 units of 16 channels.
//
// Rows i, 4 + i, 8 + i and 12 + i of four channels share a vector, so that four-by-four transposes inside its quarters
// finish the work: 64 loads, half as many shuffles as from whole rows.
METATASNET_INLINE void turn(const char* in, std::ptrdiff_t unit, float* out) {
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
    const __m512d pairs[2][2] = {{low(row[0], row[1]), low(row[2], row[3])}, {high(row[0], row[1]), high(row[2], row[3])}};
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      float* at = out + (4 * g + 2 * i) * kTileUnits;
      store(at, (Vec)_mm512_maskz_unpacklo_pd(0xff, pairs[i][0], pairs[i][1]));
      store(at + kTileUnits, (Vec)_mm512_maskz_unpackhi_pd(0xff, pairs[i][0], pairs[i][1]));
    }
  }
}

constexpr int kTileOfPanel = kTileUnits * kPanel;

METATASNET_INLINE void turn_panel(const char* in, std::ptrdiff_t unit, float* out) {
  for (int half = 0; half < 2; ++half) turn(in + half * kTileBytes, unit, out + half * kTileHeight * kTileUnits);
}

// Up to a tile's units of a panel, followed by zeros.
struct TileOfUnits {
  alignas(64) float values[kTileUnits][kPanel];

  METATASNET_INLINE void take(const char* at, std::ptrdiff_t unit, int units) {
    for (int u = 0; u < kTileUnits; ++u) {
      const auto* from = reinterpret_cast<const float*>(at + u * unit);
      for (int v = 0; v < kVectors; ++v) store(values[u] + v * kLanes, u < units ? load(from + v * kLanes) : Vec{});
    }
  }
};

// The sums of a panel of rows and one of columns += the products over `tiles` tiles of units, as turn() left those of
// the rows; the last tile of columns may be elsewhere.
METATASNET_INLINE void multiply_outer_tiles(const float* turned, const char* b, std::ptrdiff_t unit, int tiles,
                                            const TileOfUnits* last, float* sum, std::ptrdiff_t ld, bool empty) {
  const std::ptrdiff_t stride = ld * 4;
  float* below = sum + kTileHeight * ld;
  if (empty) {
    zero_sums();
  } else {
    for (int part = 0; part < 4; ++part)
      show_tile(reinterpret_cast<const char*>((part < 2 ? sum : below) + part % 2 * kLanes), stride);
    _tile_loadd(0, sum, stride);
    _tile_loadd(1, sum + kLanes, stride);
    _tile_loadd(2, below, stride);
    _tile_loadd(3, below + kLanes, stride);
  }
  for (int t = 0; t < tiles; ++t, turned += kTileOfPanel, b += kTileUnits * unit) {
    const bool elsewhere = last && t == tiles - 1;
    const char* columns = elsewhere ? reinterpret_cast<const char*>(last->values) : b;
    const std::ptrdiff_t distance = elsewhere ? kPanelBytes : unit;
    show_tile(columns, distance);
    show_tile(columns + kTileBytes, distance);
    _tile_loadd(6, columns, distance);
    _tile_loadd(4, turned, kTileBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, columns + kTileBytes, distance);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, turned + kTileHeight * kTileUnits, kTileBytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sum, stride);
  _tile_stored(1, sum + kLanes, stride);
  _tile_stored(2, below, stride);
  _tile_stored(3, below + kLanes, stride);
}

// See outer() in gradient.h.
METATASNET_INLINE void outer_tiles(const Units& a, int row_panels, const Units& b, int first, int last, int units,
                                   const WeightSum& sum, Ahead& ahead) {
  alignas(64) float turned[kOuterBlock * kPanel];
  TileOfUnits rest;
  configure_tiles();
  for (int u = 0; u < units; u += kOuterBlock) {
    const int count = units - u < kOuterBlock ? units - u : kOuterBlock, remaining = count % kTileUnits;
    const int whole = count / kTileUnits, tiles = whole + (remaining > 0);
    const bool empty = sum.empty && u == 0;
    for (int p = 0; p < row_panels; ++p) {
      const char* a_at = a.data + p * a.panel + u * a.unit;
      for (int t = 0; t < whole; ++t) turn_panel(a_at + t * kTileUnits * a.unit, a.unit, turned + t * kTileOfPanel);
      if (remaining) {
        rest.take(a_at + whole * kTileUnits * a.unit, a.unit, remaining);
        turn_panel(reinterpret_cast<const char*>(rest.values), kPanelBytes, turned + whole * kTileOfPanel);
      }
      for (int q = first; q < last; ++q) {
        const char* b_at = b.data + q * b.panel + u * b.unit;
        float* at = sum.values + p * kPanel * sum.ld + q * kPanel;
        ahead.step(kLinesAhead);
        if (q + 1 < last) prefetch_tile<kPanel>(at + kPanel, sum.ld);
        if (remaining) rest.take(b_at + whole * kTileUnits * b.unit, b.unit, remaining);
        publish(turned);
        multiply_outer_tiles(turned, b_at, b.unit, tiles, remaining ? &rest : nullptr, at, sum.ld, empty);
      }
    }
  }
  _tile_release();
}

}  // namespace metatasnet::METATASNET_ISA

#endif
