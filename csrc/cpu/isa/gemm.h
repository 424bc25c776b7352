// The matrix product inside every pass: rows of frames times packed weights, in register tiles, with a fused epilogue.
//
//   C[r, p * kPanel + j] = sum_k A[r, k] W[k, p * kPanel + j]
//
// A keeps its frames-by-channels storage (its rows are contiguous); W is packed panel by panel, each panel [k][kPanel]
// and, in bfloat16, [k / 2][kPanel][2] as the dot-product instruction reads it. A tile of kRows x kPanel accumulators
// stays in registers for up to kBlock units of k (24 KiB of weights: they stay in the first-level cache while the rows
// of the tile pass by); longer products park their accumulators, 12 KiB a panel, in between.
//
// Cost per unit of k: 24 multiply-adds, 2 loads of weights and 12 broadcasts (AVX-512), so arithmetic is the
// bottleneck.
#pragma once

#include "cpu/isa/vector.h"
#include "cpu/passes.h"

namespace metatasnet::METATASNET_ISA {

// How one operand type is multiplied. A unit is the four bytes that are broadcast: one float or two bfloat16.
template <class Operand>
struct Arithmetic;

template <>
struct Arithmetic<float> {
  static constexpr int kValues = 1;  // values of k in a unit
  static METATASNET_INLINE Vec broadcast(const char* p) {
    float x;
    __builtin_memcpy(&x, p, sizeof x);
    return splat(x);
  }
  static METATASNET_INLINE Vec multiply_add(Vec sum, Vec a, Vec w) { return a * w + sum; }
};

#if defined(__AVX512BF16__)
template <>
struct Arithmetic<bfloat16> {
  static constexpr int kValues = 2;
  static METATASNET_INLINE Vec broadcast(const char* p) {
    std::uint32_t x;
    __builtin_memcpy(&x, p, sizeof x);
    return (Vec)(UVec{} + x);
  }
  static METATASNET_INLINE Vec multiply_add(Vec sum, Vec a, Vec w) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)w);
  }
};
#endif

constexpr int kBlock = 192;

// Prefetch a register tile's place in memory while its product is being computed.
template <int kTileRows, class T>
METATASNET_INLINE void prefetch_tile(const T* at, std::ptrdiff_t ld) {
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i)
    for (std::size_t line = 0; line < kPanel * sizeof(T); line += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(at + i * ld) + line, 1);
}

// Prefetches the rows after a tile, a few cache lines at a time, while the tile is computed. Passes read activations
// panel by panel, a line or two of each row, and this pattern is too sparse for the hardware prefetcher.
class Ahead {
 public:
  // The rows that follow some rows of so many bytes.
  METATASNET_INLINE void add(const void* rows, std::ptrdiff_t bytes) {
    at_[count_] = static_cast<const char*>(rows) + bytes;
    end_[count_++] = static_cast<const char*>(rows) + 2 * bytes;
  }

  METATASNET_INLINE void step(int lines) {
    while (lines > 0 && current_ < count_) {
      __builtin_prefetch(at_[current_], 0, 2);
      at_[current_] += 64;
      if (at_[current_] >= end_[current_]) ++current_;
      --lines;
    }
  }

 private:
  const char *at_[5], *end_[5];
  int count_ = 0, current_ = 0;
};

// Cache lines to prefetch for each row panel and each column panel of a sum over frames.
constexpr int kLinesAhead = 72;

// Weights that exceed the second-level cache are prefetched into it while the block before them is multiplied.
constexpr std::int64_t kStreamed = std::int64_t{1} << 20;

METATASNET_INLINE bool streamed(const PackedMatrix& w) {
  return !w.bands && static_cast<std::int64_t>(w.panels) * w.units * kPanel * 4 > kStreamed;
}

METATASNET_INLINE void prefetch_weights(const char* at, std::ptrdiff_t bytes) {
  for (std::ptrdiff_t line = 0; line < bytes; line += 64) __builtin_prefetch(at + line, 0, 2);
}

template <int kTileRows>
using Accumulators = Vec[kTileRows][kVectors];

// acc += A W over `units` of k. Four pointers and one stride address twelve rows, so that no register is spilled.
template <class Operand>
METATASNET_INLINE void multiply(Accumulators<kRows>& acc, const char* a, std::ptrdiff_t lda, const float* w, int units) {
  using M = Arithmetic<Operand>;
  constexpr int kGroups = kRows / 3;
  const char* p[kGroups];
#pragma GCC unroll 4
  for (int g = 0; g < kGroups; ++g) p[g] = a + 3 * g * lda;
#pragma GCC unroll 2
  for (int u = 0; u < units; ++u) {
    const Vec w0 = load(w), w1 = load(w + kLanes);
    w += kPanel;
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 3
      for (int j = 0; j < 3; ++j) {
        const Vec x = M::broadcast(p[g] + j * lda);
        acc[3 * g + j][0] = M::multiply_add(acc[3 * g + j][0], x, w0);
        acc[3 * g + j][1] = M::multiply_add(acc[3 * g + j][1], x, w1);
      }
      p[g] += 4;
    }
  }
}

// Computes all panels of W in [first, last) for `rows` frames at `a` (readable up to a multiple of kRows).
//
// `epilogue` is called for each panel: begin at its start, tile with its register tiles in the order of rows, end at
// its end.
template <class Operand, class Epilogue>
METATASNET_INLINE void gemm(const Operand* a, std::ptrdiff_t lda, int rows, const PackedMatrix& w, int first, int last,
                            Epilogue& epilogue) {
  constexpr int kValues = Arithmetic<Operand>::kValues;
  const std::ptrdiff_t stride = lda * static_cast<std::ptrdiff_t>(sizeof(Operand));
  alignas(64) float parked[kTile * kPanel];
  const bool ahead = streamed(w);
  for (int p = first; p < last; ++p) {
    const Band band = w.bands ? w.bands[p] : Band{static_cast<std::int64_t>(p) * w.units * kPanel, 0, w.units};
    const float* weights = static_cast<const float*>(w.data) + band.offset;
    const char* rows_at = reinterpret_cast<const char*>(a + static_cast<std::ptrdiff_t>(band.begin) * kValues);
    epilogue.begin(p);
    for (int u = 0; u < band.units || u == 0; u += kBlock) {
      const int units = band.units - u < kBlock ? band.units - u : kBlock;
      const bool conclude = u + units >= band.units;
      for (int r = 0; r < rows; r += kRows) {
        Accumulators<kRows> acc;
        float* park = parked + r * kPanel;
#pragma GCC unroll 12
        for (int i = 0; i < kRows; ++i) {
          acc[i][0] = u ? load(park + i * kPanel) : Vec{};
          acc[i][1] = u ? load(park + i * kPanel + kLanes) : Vec{};
        }
        if (conclude) epilogue.template prefetch<kRows>(p, r);
        if (ahead) {
          constexpr std::ptrdiff_t share = kBlock * kPanel * 4 / (kTile / kRows);
          prefetch_weights(reinterpret_cast<const char*>(weights + static_cast<std::ptrdiff_t>(u + units) * kPanel) +
                               r / kRows * share,
                           share);
        }
        multiply<Operand>(acc, rows_at + r * stride + 4 * u, stride, weights + static_cast<std::ptrdiff_t>(u) * kPanel,
                          units);
        if (!conclude) {
#pragma GCC unroll 12
          for (int i = 0; i < kRows; ++i) {
            store(park + i * kPanel, acc[i][0]);
            store(park + i * kPanel + kLanes, acc[i][1]);
          }
        } else if (rows - r >= kRows) {
          epilogue.template tile<true>(p, r, kRows, acc);
        } else {
          epilogue.template tile<false>(p, r, rows - r, acc);
        }
      }
    }
    epilogue.end(p);
  }
}

}  // namespace metatasnet::METATASNET_ISA
