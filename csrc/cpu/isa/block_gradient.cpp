// A TCN block backward, from the gradients of the residual stream and of the skip sum to that of the block's input.
//
//   forward: u = W_c x;  p = n_1(prelu(u));  v = depthwise(p);  q = n_2(prelu(v));  x += W_r q + b_r;  skip += W_s q + b_s
//
//   G = sum over frames of [dx dskip] (x) q            mix_gradient
//   dv = (n_2 prelu)'([dx dskip] [W_r; W_s])           hidden_gradient, when G has given the norm's sums
//   sums of dv with the taps' inputs                   depthwise_sums
//   du = (n_1 prelu)'(taps of dv);  G_c = sum of du (x) x;  dx += du W_c         block_gradient
//
// q and p are normalised without the norm's weights, which are folded into the convolutions' (hidden_gradient) and
// multiplied afterwards (combine): no division, and a constant signal gives exact zeros.
// Bytes per frame and channel (B = H), float32 / bfloat16: dx, dskip 8 in every pass but the third; kept v twice, u twice
// and x once 4 / 2 each; dv written once and read twice 4 / 2. FLOPs: 2 H (2 B) twice and 2 B H twice.
#include "cpu/isa/gradient.h"
#include "cpu/isa/regions.h"

namespace metatasnet::METATASNET_ISA {
namespace {

template <class Mode>
struct NormBackward {
  const HiddenGradientArgs& args;
  NormGradientColumn<typename Mode::Storage> norm;
  Ahead ahead;

  explicit NormBackward(const HiddenGradientArgs& a) : args(a), norm(a.norm) {
    ahead.add(a.gradient, tile_bytes<float>(a.rows, a.ld_gradient));
    ahead.add(a.kept, tile_bytes<typename Mode::Storage>(a.rows, a.ld_hidden));
    ahead.add(a.hidden, tile_bytes<typename Mode::Storage>(a.rows, a.ld_hidden));
  }

  METATASNET_INLINE void begin(int panel) { norm.begin(args.norm, panel * kPanel); }

  template <int kTileRows>
  METATASNET_INLINE void prefetch(int panel, int first) {
    using Storage = typename Mode::Storage;
    const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(first) * args.ld_hidden + panel * kPanel;
    prefetch_tile<kTileRows>(static_cast<Storage*>(args.hidden) + at, args.ld_hidden);
    prefetch_tile<kTileRows>(static_cast<const Storage*>(args.kept) + at, args.ld_hidden);
    ahead.step(8 * kTileRows);
  }

  template <bool kFull, int kTileRows>
  METATASNET_INLINE void tile(int panel, int first, int valid, Accumulators<kTileRows>& acc) {
    using Storage = typename Mode::Storage;
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      if (!kFull && i >= valid) break;
      for (int v = 0; v < kVectors; ++v) {
        const std::ptrdiff_t at =
            static_cast<std::ptrdiff_t>(first + i) * args.ld_hidden + panel * kPanel + v * kLanes;
        const Vec kept = load(static_cast<const Storage*>(args.kept) + at);
        store(static_cast<Storage*>(args.hidden) + at, norm(v, acc[i][v], kept));
      }
    }
  }

  METATASNET_INLINE void end(int) {}
};

struct AddRows {
  float* out;
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
      for (int v = 0; v < kVectors; ++v) {
        float* at = out + (first + i) * ld + panel * kPanel + v * kLanes;
        store(at, load(at) + acc[i][v]);
      }
    }
  }
  METATASNET_INLINE void end(int) {}
};

}  // namespace

template <class Mode>
void mix_gradient(const MixGradientArgs& a) {
  using Operand = typename Mode::Operand;
  Ahead ahead;
  ahead.add(a.gradient, tile_bytes<float>(a.rows, a.ld_gradient));
  ahead.add(a.kept, tile_bytes<typename Mode::Storage>(a.rows, a.ld_kept));
  outer<Operand>(float_units<Mode>(a.gradient, a.rows, a.outputs, a.ld_gradient, a.scratch.units[0], a.column_sums,
                                   a.sum.empty),
                 panels_of(a.outputs),
                 normalised_units<Mode>(a.rows, a.inputs, a.kept, a.ld_kept, a.norm, a.scratch.units[1]), 0,
                 panels_of(a.inputs), units_in<Operand>(a.rows), a.sum, ahead);
}

template <class Mode>
void hidden_gradient(const HiddenGradientArgs& a) {
  using Operand = typename Mode::Operand;
  std::ptrdiff_t ld = a.ld_gradient;
  const Operand* gradient = float_rows<Mode>(a.gradient, a.rows, a.outputs, ld, a.scratch.rows[0]);
  NormBackward<Mode> epilogue(a);
  gemm(gradient, ld, a.rows, *a.weights, 0, a.weights->panels, epilogue);
  *a.slope_sum = sum_of(epilogue.norm.slope_sum);
}

template <class Mode>
void depthwise_sums(const DepthwiseSumsArgs& a) {
  using Storage = typename Mode::Storage;
  for (int column = 0; column < a.channels; column += kPanel) {
    const NormaliseColumn<typename Mode::Storage> norm(a.norm, column);
    Vec plain[3][kVectors] = {}, product[3][kVectors] = {};
    const auto* kept = static_cast<const Storage*>(a.kept) + column;
    const auto* hidden = static_cast<const Storage*>(a.hidden) + column;
    // Tap k of output frame t + (1 - k) d reads frame t.
    each_frame(a.first, a.rows, a.frames, a.dilation, [&](auto earlier, auto later, std::int64_t t) METATASNET_INLINE_LAMBDA {
      const std::ptrdiff_t at = t * a.ld, reach = static_cast<std::ptrdiff_t>(a.dilation) * a.ld;
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const Vec p = norm(v, load(kept + at + v * kLanes));
        const auto add = [&](int k, Vec dv) {
          plain[k][v] += dv;
          product[k][v] += dv * p;
        };
        add(1, load(hidden + at + v * kLanes));
        if (later()) add(0, load(hidden + at + reach + v * kLanes));
        if (earlier()) add(2, load(hidden + at - reach + v * kLanes));
      }
    });
    for (int k = 0; k < 3; ++k) {
      for (int v = 0; v < kVectors; ++v) {
        store(a.sums + 2 * k * a.ld + column + v * kLanes, plain[k][v]);
        store(a.sums + (2 * k + 1) * a.ld + column + v * kLanes, product[k][v]);
      }
    }
  }
}

template <class Mode>
void block_gradient(const BlockGradientArgs& a) {
  using Storage = typename Mode::Storage;
  using Operand = typename Mode::Operand;
  auto* rows = static_cast<Operand*>(a.scratch.rows[0]);
  Ahead ahead;
  const std::ptrdiff_t first = a.first * a.ld, bytes = tile_bytes<Storage>(a.rows, a.ld);
  ahead.add(static_cast<const Storage*>(a.hidden) + first + static_cast<std::ptrdiff_t>(a.dilation) * a.ld, bytes);
  ahead.add(static_cast<const Storage*>(a.kept) + first, bytes);
  ahead.add(a.x, tile_bytes<Storage>(a.rows, a.ld_x));
  NormGradientColumn<typename Mode::Storage> norm(a.norm);
  for (int column = 0; column < a.channels; column += kPanel) {
    norm.begin(a.norm, column);
    Vec taps[3][kVectors];
    for (int k = 0; k < 3; ++k)
      for (int v = 0; v < kVectors; ++v) taps[k][v] = load(a.taps + k * a.ld + column + v * kLanes);
    const auto* kept = static_cast<const Storage*>(a.kept) + column;
    const auto* hidden = static_cast<const Storage*>(a.hidden) + column;
    each_frame(a.first, a.rows, a.frames, a.dilation, [&](auto earlier, auto later, std::int64_t t) METATASNET_INLINE_LAMBDA {
      const std::ptrdiff_t at = t * a.ld, reach = static_cast<std::ptrdiff_t>(a.dilation) * a.ld;
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        Vec dp = load(hidden + at + v * kLanes) * taps[1][v];
        if (later()) dp = load(hidden + at + reach + v * kLanes) * taps[0][v] + dp;
        if (earlier()) dp = load(hidden + at - reach + v * kLanes) * taps[2][v] + dp;
        put_operand<Mode>(rows + (t - a.first) * a.ld + column + v * kLanes,
                          norm(v, dp, load(kept + at + v * kLanes)));
      }
    });
  }
  *a.slope_sum = sum_of(norm.slope_sum);

  const auto* kept_x = static_cast<const Storage*>(a.x);
  const Operand* x = kept_rows<Mode>(kept_x, a.rows, a.ld_x, a.scratch.rows[1]);
  outer<Operand>(as_units(rows, a.rows, a.ld, a.ld, a.scratch.units[0]), panels_of(a.channels),
                 as_units(x, a.rows, a.ld_x, a.ld_x, a.scratch.units[1]), 0, a.weights->panels,
                 units_in<Operand>(a.rows), a.sum, ahead);
  AddRows add{a.x_gradient, a.ld_gradient};
  gemm(static_cast<const Operand*>(rows), a.ld, a.rows, *a.weights, 0, a.weights->panels, add);
}

template <class Mode>
void norm_gradient(const NormGradientArgs& a) {
  const auto* kept = static_cast<const typename Mode::Storage*>(a.kept);
  NormGradientColumn<typename Mode::Storage> norm(a.norm);
  for (int c = 0; c < a.channels; c += kPanel) {
    norm.begin(a.norm, c);
    for (int r = 0; r < a.rows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        const int column = c + v * kLanes;
        const Vec dy = load(a.dy + r * a.ld_dy + column);
        const Vec x = load(kept + static_cast<std::ptrdiff_t>(r) * a.ld_kept + column);
        store(a.gradient + r * a.ld + column, norm(v, dy, x));
      }
    }
  }
  *a.slope_sum = sum_of(norm.slope_sum);
}

template <class Mode>
void norm_sums(const NormSumsArgs& a) {
  const auto* kept = static_cast<const typename Mode::Storage*>(a.kept);
  for (int c = 0; c < a.channels; c += kPanel) {
    const NormaliseColumn<typename Mode::Storage> norm(a.norm, c);
    Vec plain[kVectors] = {}, product[kVectors] = {};
    for (int r = 0; r < a.rows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        const int column = c + v * kLanes;
        const Vec dy = load(a.dy + r * a.ld_dy + column);
        plain[v] += dy;
        product[v] += dy * norm(v, load(kept + static_cast<std::ptrdiff_t>(r) * a.ld_kept + column));
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      store(a.sums + c + v * kLanes, plain[v]);
      store(a.sums + a.ld_kept + c + v * kLanes, product[v]);
    }
  }
}

METATASNET_INSTANTIATE(mix_gradient, MixGradientArgs)
METATASNET_INSTANTIATE(hidden_gradient, HiddenGradientArgs)
METATASNET_INSTANTIATE(depthwise_sums, DepthwiseSumsArgs)
METATASNET_INSTANTIATE(block_gradient, BlockGradientArgs)
METATASNET_INSTANTIATE(norm_gradient, NormGradientArgs)
METATASNET_INSTANTIATE(norm_sums, NormSumsArgs)

}  // namespace metatasnet::METATASNET_ISA
