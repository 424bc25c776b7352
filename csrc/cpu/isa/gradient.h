// Code shared by the backward passes: sums over frames of products of two activations, and group norms backward.
#pragma once

#include "cpu/backward_passes.h"
#include "cpu/isa/gemm.h"
#include "cpu/isa/gemm_tiles.h"
#include "cpu/isa/modes.h"
#include "cpu/isa/outer_tiles.h"

namespace metatasnet::METATASNET_ISA {

template <class Operand>
constexpr int units_in(int frames) {
  return (frames + Arithmetic<Operand>::kValues - 1) / Arithmetic<Operand>::kValues;
}

// Rows of operands as units: in place for float32, else with two frames interleaved in `scratch`.
METATASNET_INLINE Units as_units(const float* rows, int, std::ptrdiff_t ld, int, void*) {
  return {reinterpret_cast<const char*>(rows), kPanel * 4, ld * 4};
}

#if defined(__AVX512BF16__)
// One row of units from two rows of values; the second may be missing.
METATASNET_INLINE void interleave(const bfloat16* even, const bfloat16* odd, int channels, float* out) {
  for (int c = 0; c < channels; c += kLanes) {
    const UVec high = odd ? (UVec)load(odd + c) : UVec{};
    store(out + c, (Vec)(high | ((UVec)load(even + c) >> 16)));
  }
}

METATASNET_INLINE Units as_units(const bfloat16* rows, int count, std::ptrdiff_t ld, int channels, void* scratch) {
  auto* out = static_cast<float*>(scratch);
  for (int t = 0; t < count; t += 2)
    interleave(rows + t * ld, t + 1 < count ? rows + (t + 1) * ld : nullptr, channels, out + (t / 2) * ld);
  return {static_cast<const char*>(scratch), kPanel * 4, ld * 4};
}
#endif

// Write units of value(frame, column, v), a vector of the panel that begins at `column`, into `scratch` in rows of ld
// units.
template <class Mode, class Begin, class Value>
METATASNET_INLINE Units make_units(int rows, int channels, std::ptrdiff_t ld, void* scratch, Begin begin, Value value) {
  using Operand = typename Mode::Operand;
  for (int c = 0; c < channels; c += kPanel) {
    begin(c);
    for (int r = 0; r < rows; r += Arithmetic<Operand>::kValues) {
      for (int v = 0; v < kVectors; ++v) {
        if constexpr (sizeof(Operand) == sizeof(float)) {
          put_operand<Mode>(static_cast<float*>(scratch) + r * ld + c + v * kLanes, value(r, c, v));
        } else {
          const UVec even = rounded(value(r, c, v)), odd = r + 1 < rows ? rounded(value(r + 1, c, v)) : UVec{};
          store(static_cast<float*>(scratch) + r / 2 * ld + c + v * kLanes, (Vec)(odd | (even >> 16)));
        }
      }
    }
  }
  return {static_cast<const char*>(scratch), kPanel * 4, ld * 4};
}

// acc[i][c] += sum over units of a[i] b[c].
template <class Operand, int kTileRows>
METATASNET_INLINE void multiply_outer(Accumulators<kTileRows>& acc, const char* a, std::ptrdiff_t a_unit, const char* b,
                                      std::ptrdiff_t b_unit, int units) {
  using M = Arithmetic<Operand>;
  for (int u = 0; u < units; ++u) {
    const Vec b0 = load(reinterpret_cast<const float*>(b)), b1 = load(reinterpret_cast<const float*>(b) + kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      const Vec x = M::broadcast(a + 4 * i);
      acc[i][0] = M::multiply_add(acc[i][0], x, b0);
      acc[i][1] = M::multiply_add(acc[i][1], x, b1);
    }
    a += a_unit;
    b += b_unit;
  }
}

template <class Operand, int kTileRows>
METATASNET_INLINE void add_outer(const Units& a, const char* a_at, const Units& b, const char* b_at, int units,
                                 float* sum, std::ptrdiff_t ld, bool empty) {
  Accumulators<kTileRows> acc;
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) acc[i][0] = acc[i][1] = Vec{};
  prefetch_tile<kTileRows>(sum, ld);
  multiply_outer<Operand, kTileRows>(acc, a_at, a.unit, b_at, b.unit, units);
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      float* at = sum + i * ld + v * kLanes;
      store(at, empty ? acc[i][v] : load(at) + acc[i][v]);
    }
  }
}

// sum[r, c] += sum over units of a[u, r] b[u, c] for whole panels of rows and of columns.
//
// 24 multiply-adds take 12 broadcasts of consecutive channels and two loads of weights per unit. Blocks of kBlock units:
// a panel of `a` and one of `b` stay in the first-level cache.
template <class Operand>
METATASNET_INLINE void outer(const Units& a, int row_panels, const Units& b, int first, int last, int units,
                             const WeightSum& sum, Ahead& ahead) {
  constexpr int kRest = kPanel % kRows;
  for (int u = 0; u < units; u += kBlock) {
    const int count = units - u < kBlock ? units - u : kBlock;
    const bool empty = sum.empty && u == 0;
    for (int p = 0; p < row_panels; ++p) {
      const char* a_at = a.data + p * a.panel + u * a.unit;
      for (int q = first; q < last; ++q) {
        const char* b_at = b.data + q * b.panel + u * b.unit;
        ahead.step(kLinesAhead);
        float* at = sum.values + p * kPanel * sum.ld + q * kPanel;
        int r = 0;
        for (; r + kRows <= kPanel; r += kRows)
          add_outer<Operand, kRows>(a, a_at + 4 * r, b, b_at, count, at + r * sum.ld, sum.ld, empty);
        if constexpr (kRest != 0)
          add_outer<Operand, kRest>(a, a_at + 4 * r, b, b_at, count, at + r * sum.ld, sum.ld, empty);
      }
    }
  }
}

#if defined(__AMX_BF16__)
template <>
METATASNET_INLINE void outer<bfloat16>(const Units& a, int row_panels, const Units& b, int first, int last, int units,
                                       const WeightSum& sum, Ahead& ahead) {
  outer_tiles(a, row_panels, b, first, last, units, sum, ahead);
}
#endif

// The columns of one panel in a Normalise; x is a stored value.
template <class Storage>
struct NormaliseColumn {
  Vec mean[kVectors], rstd[kVectors], slope;

  METATASNET_INLINE NormaliseColumn(const Normalise& n, int column) : slope(splat(n.slope)) {
    for (int v = 0; v < kVectors; ++v) {
      mean[v] = load(n.mean + column + v * kLanes);
      rstd[v] = load(n.rstd + column + v * kLanes);
    }
  }

  METATASNET_INLINE Vec operator()(int v, Vec x) const {
    return (activated<Storage>(x, slope) - mean[v]) * rstd[v];
  }
};

// The columns of one panel in a NormGradient, and the sum of the slope's gradient. x is a stored value.
template <class Storage>
struct NormGradientColumn {
  Vec scale[kVectors], mean[kVectors], offset[kVectors], factor[kVectors], slope, slope_sum = Vec{};

  METATASNET_INLINE explicit NormGradientColumn(const NormGradient& n) : slope(splat(n.slope)) {}

  METATASNET_INLINE void begin(const NormGradient& n, int column) {
    for (int v = 0; v < kVectors; ++v) {
      scale[v] = load(n.scale + column + v * kLanes);
      mean[v] = load(n.mean + column + v * kLanes);
      offset[v] = load(n.offset + column + v * kLanes);
      factor[v] = load(n.factor + column + v * kLanes);
    }
  }

  METATASNET_INLINE Vec operator()(int v, Vec dy, Vec x) {
    const Vec dp = dy * scale[v] - offset[v] - factor[v] * (activated<Storage>(x, slope) - mean[v]);
    const IVec positive = x > Vec{};
    slope_sum += select(positive, Vec{}, dp * x);
    return select(positive, dp, dp * slope);
  }
};

METATASNET_INLINE float sum_of(Vec v) {
  float lanes[kLanes], sum = 0.0f;
  store(lanes, v);
  for (int i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}

// Add a tile's part to sums[column ...].
METATASNET_INLINE void add_columns(float* sums, int column, const Vec* more, bool empty) {
  for (int v = 0; v < kVectors; ++v) {
    float* at = sums + column + v * kLanes;
    store(at, empty ? more[v] : load(at) + more[v]);
  }
}

template <class T>
constexpr std::ptrdiff_t tile_bytes(int rows, std::ptrdiff_t ld) {
  return rows * ld * static_cast<std::ptrdiff_t>(sizeof(T));
}

constexpr int panels_of(int channels) { return (channels + kPanel - 1) / kPanel; }

// Return float32 rows as operands of a product: the rows themselves in float32, else rounded copies in `scratch`. Sets `ld`
// to the distance of the rows.
template <class Mode>
METATASNET_INLINE const typename Mode::Operand* float_rows(const float* in, int rows, int channels, std::ptrdiff_t& ld,
                                                           void* scratch) {
  using Operand = typename Mode::Operand;
  if constexpr (sizeof(typename Mode::Storage) == sizeof(float)) {
    return in;
  } else {
    auto* out = static_cast<Operand*>(scratch);
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < channels; c += kLanes) put_operand<Mode>(out + r * channels + c, load(in + r * ld + c));
    ld = channels;
    return out;
  }
}

// Convert exactly `rows` stored rows to operands.
template <class Mode>
METATASNET_INLINE const typename Mode::Operand* kept_rows(const typename Mode::Storage* in, int rows, std::ptrdiff_t ld,
                                                          void* scratch) {
  using Operand = typename Mode::Operand;
  if constexpr (sizeof(typename Mode::Storage) == sizeof(Operand)) {
    return in;
  } else {
    auto* out = static_cast<Operand*>(scratch);
    for (std::ptrdiff_t i = 0; i < rows * ld; i += kLanes) put_operand<Mode>(out + i, load(in + i));
    return out;
  }
}

// Write the normalised values of a tile as units.
template <class Mode>
METATASNET_INLINE Units normalised_units(int rows, int channels, const void* kept, std::ptrdiff_t ld,
                                         const Normalise& norm, void* scratch) {
  const auto* in = static_cast<const typename Mode::Storage*>(kept);
  using Column = NormaliseColumn<typename Mode::Storage>;
  Column column(norm, 0);
  return make_units<Mode>(
      rows, channels, ld, scratch, [&](int c) METATASNET_INLINE_LAMBDA { column = Column(norm, c); },
      [&](int r, int c, int v) METATASNET_INLINE_LAMBDA { return column(v, load(in + r * ld + c + v * kLanes)); });
}

// float32 rows as units, with the sums of their columns: in place for float32 operands, else rounded into `scratch`.
template <class Mode>
METATASNET_INLINE Units float_units(const float* in, int rows, int channels, std::ptrdiff_t ld, void* scratch,
                                    float* column_sums, bool empty) {
  Vec sums[kVectors] = {};
  if constexpr (sizeof(typename Mode::Storage) == sizeof(float)) {
    for (int c = 0; c < channels; c += kPanel) {
      for (int v = 0; v < kVectors; ++v) sums[v] = Vec{};
      for (int r = 0; r < rows; ++r)
        for (int v = 0; v < kVectors; ++v) sums[v] += load(in + r * ld + c + v * kLanes);
      add_columns(column_sums, c, sums, empty);
    }
    return as_units(in, rows, ld, channels, scratch);
  } else {
    int column = -kPanel;
    const auto end = [&]() METATASNET_INLINE_LAMBDA {
      if (column >= 0) add_columns(column_sums, column, sums, empty);
    };
    const Units units = make_units<Mode>(
        rows, channels, channels, scratch,
        [&](int c) METATASNET_INLINE_LAMBDA {
          end();
          column = c;
          for (int v = 0; v < kVectors; ++v) sums[v] = Vec{};
        },
        [&](int r, int c, int v) METATASNET_INLINE_LAMBDA {
          const Vec x = load(in + r * ld + c + v * kLanes);
          sums[v] += x;
          return x;
        });
    end();
    return units;
  }
}

// Writes the results of a product, as rows of float32 or of the type in which activations are stored.
template <class Number>
struct StoreRows {
  Number* out;
  std::ptrdiff_t ld;

  METATASNET_INLINE void begin(int) {}
  template <int kTileRows>
  METATASNET_INLINE void prefetch(int panel, int first) {
    prefetch_tile<kTileRows>(out + first * ld + panel * kPanel, ld);
  }
  template <bool kFull, int kTileRows>
  METATASNET_INLINE void tile(int panel, int first, int valid, Accumulators<kTileRows>& acc) {
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      if (!kFull && i >= valid) break;
      for (int v = 0; v < kVectors; ++v) store(out + (first + i) * ld + panel * kPanel + v * kLanes, acc[i][v]);
    }
  }
  METATASNET_INLINE void end(int) {}
};

}  // namespace metatasnet::METATASNET_ISA
