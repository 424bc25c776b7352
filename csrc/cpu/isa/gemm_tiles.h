// The product of gemm.h for bfloat16 operands in the tile registers of AMX.
//
// 32 frames by 32 outputs, four tiles of sums, take two tiles of A and two of B for every 16 units of k: four loads of
// 1 KiB feed four multiplications of 16 cycles. A panel's weights are, as packed, two tiles side by side, and A is read
// where it lies. What remains of k beyond whole tiles is copied to where zeros follow it, once for all panels of the
// same length.
//
// The unit multiplies while the vector units finish the block before: each block's sums pass through 4 KiB of memory,
// and its epilogue comes in the program after the next block's multiplications. A sum has the same order whatever
// block it is in, so results depend neither on the number of frames nor on the threads.
#pragma once

#include "cpu/isa/gemm.h"
#include "cpu/isa/tiles.h"

#if defined(__AMX_BF16__)

namespace metatasnet::METATASNET_ISA {

constexpr int kBlockRows = 2 * kTileHeight;
static_assert(kTile % kBlockRows == 0 && kPanel == 2 * kTileUnits && kBlock % kTileUnits == 0, "whole tiles");
constexpr std::ptrdiff_t kPanelBytes = kPanel * 4;

typedef Accumulators<kTileHeight> TileSums;

METATASNET_INLINE const char* bytes_of(const float* at) { return reinterpret_cast<const char*>(at); }

// Tiles 0 to 3: sums, 32 rows by 32 columns at `at` or zero. 4 and 5: frames, 6 and 7: weights.
METATASNET_INLINE void load_sums(const float* at, std::ptrdiff_t stride) {
  const float* below = at + kTileHeight * stride / 4;
  show_tile(bytes_of(at), stride);
  show_tile(bytes_of(at + kLanes), stride);
  show_tile(bytes_of(below), stride);
  show_tile(bytes_of(below + kLanes), stride);
  _tile_loadd(0, at, stride);
  _tile_loadd(1, at + kLanes, stride);
  _tile_loadd(2, below, stride);
  _tile_loadd(3, below + kLanes, stride);
}

METATASNET_INLINE void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

METATASNET_INLINE void store_sums(float* at, std::ptrdiff_t stride) {
  float* below = at + kTileHeight * stride / 4;
  _tile_stored(0, at, stride);
  _tile_stored(1, at + kLanes, stride);
  _tile_stored(2, below, stride);
  _tile_stored(3, below + kLanes, stride);
}

// The sums += A W over `units` of k, a multiple of kTileUnits; the rows of A and W are `stride` and `w_stride` bytes
// apart. Both tiles of frames are always read, even if only one holds valid frames.
METATASNET_INLINE void multiply_tiles(const char* a, std::ptrdiff_t stride, const char* w, std::ptrdiff_t w_stride,
                                      int units) {
  for (int u = 0; u < units; u += kTileUnits, a += kTileBytes, w += kTileUnits * w_stride) {
    const char* below = a + kTileHeight * stride;
    show_tile(a, stride);
    show_tile(below, stride);
    show_tile(w, w_stride);
    show_tile(w + kTileBytes, w_stride);
    _tile_loadd(6, w, w_stride);
    _tile_loadd(4, a, stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, w + kTileBytes, w_stride);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, below, stride);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// The last units of k, fewer than a tile has, followed by zeros.
struct Remainder {
  alignas(64) float frames[kTile][kTileUnits];
  alignas(64) float weights[kTileUnits][kPanel];
  int first = -1, units = 0;  // the units of the frames that are held

  METATASNET_INLINE void take(const char* a, std::ptrdiff_t stride, int rows, int begin, int count) {
    if (begin == first && count == units) return;
    first = begin;
    units = count;
    for (int r = 0; r < rows; ++r)
      store(frames[r], load_first(reinterpret_cast<const float*>(a + r * stride), count));
  }

  METATASNET_INLINE void take_weights(const float* w) {
    for (int u = 0; u < kTileUnits; ++u) {
      for (int v = 0; v < kVectors; ++v)
        store(weights[u] + v * kLanes, u < units ? load(w + u * kPanel + v * kLanes) : Vec{});
    }
    publish(this);
  }
};

// As the other gemm(), but `a` is readable up to a multiple of kBlockRows.
template <class Epilogue>
METATASNET_INLINE void gemm(const bfloat16* a, std::ptrdiff_t lda, int rows, const PackedMatrix& w, int first, int last,
                            Epilogue& epilogue) {
  const std::ptrdiff_t stride = lda * static_cast<std::ptrdiff_t>(sizeof(bfloat16));
  alignas(64) TileSums sums[kTile / kTileHeight];
  Remainder remainder;
  const int readable = (rows + kBlockRows - 1) / kBlockRows * kBlockRows;
  int waiting_panel = -1, waiting_row = 0;  // the block whose epilogue has not run yet
  const auto conclude = [&] {
    if (waiting_panel < 0) return;
    if (waiting_row == 0) epilogue.begin(waiting_panel);
    for (int r = waiting_row; r < waiting_row + kBlockRows && r < rows; r += kTileHeight) {
      TileSums& done = sums[r / kTileHeight];
      if (rows - r >= kTileHeight) {
        epilogue.template tile<true>(waiting_panel, r, kTileHeight, done);
      } else {
        epilogue.template tile<false>(waiting_panel, r, rows - r, done);
      }
    }
    if (waiting_row + kBlockRows >= rows) epilogue.end(waiting_panel);
    waiting_panel = -1;
  };
  publish(a);
  configure_tiles();
  for (int p = first; p < last; ++p) {
    const Band band = w.bands ? w.bands[p] : Band{static_cast<std::int64_t>(p) * w.units * kPanel, 0, w.units};
    const float* weights = static_cast<const float*>(w.data) + band.offset;
    const char* rows_at = reinterpret_cast<const char*>(a) + static_cast<std::ptrdiff_t>(band.begin) * 4;
    const int whole = band.units / kTileUnits * kTileUnits;
    if (whole < band.units) {
      remainder.take(rows_at + 4 * whole, stride, readable, band.begin + whole, band.units - whole);
      remainder.take_weights(weights + static_cast<std::ptrdiff_t>(whole) * kPanel);
    }
    for (int u = 0; u < whole || u == 0; u += kBlock) {
      const bool complete = u + kBlock >= whole;
      const int units = complete ? whole - u : kBlock;
      for (int r = 0; r < rows; r += kBlockRows) {
        float* sums_at = reinterpret_cast<float*>(sums + r / kTileHeight);
        if (u) {
          load_sums(sums_at, kPanelBytes);
        } else {
          zero_sums();
        }
        if (complete) epilogue.template prefetch<kBlockRows>(p, r);
        multiply_tiles(rows_at + r * stride + 4 * u, stride,
                       bytes_of(weights + static_cast<std::ptrdiff_t>(u) * kPanel), kPanelBytes, units);
        if (complete && whole < band.units)
          multiply_tiles(bytes_of(remainder.frames[r]), kTileBytes, bytes_of(remainder.weights[0]), kPanelBytes,
                         kTileUnits);
        conclude();
        store_sums(sums_at, kPanelBytes);
        if (complete) {
          waiting_panel = p;
          waiting_row = r;
        }
      }
    }
  }
  _tile_release();
  conclude();
}

}  // namespace metatasnet::METATASNET_ISA

#endif
