// The masking network's input backward: a = prelu(concat(latent, partial)), y = W n(a).
//
//   G = sum over frames of dy (x) n(a)           input_weight_gradient
//   dlatent, dpartial = (n prelu)'(dy W)         input_gradient, when G has given the norm's sums
//
// Bytes per frame: dy 4 B, the latents once in each pass, their gradients; FLOPs 2 K B each.
#include "cpu/isa/gradient.h"
#include "cpu/isa/source.h"

namespace metatasnet::METATASNET_ISA {
namespace {

template <class Mode>
struct InputEpilogue {
  const Source& source;
  NormGradientColumn norm;
  const NormGradient& weights;
  float* sum;                    // added to
  typename Mode::Storage* out;  // or stored
  std::ptrdiff_t ld;

  METATASNET_INLINE void begin(int panel) { norm.begin(weights, panel * kPanel); }

  template <int kTileRows>
  METATASNET_INLINE void prefetch(int panel, int first) {
    const std::ptrdiff_t at = first * ld + panel * kPanel;
    if (sum) {
      prefetch_tile<kTileRows>(sum + at, ld);
    } else {
      prefetch_tile<kTileRows>(out + at, ld);
    }
  }

  template <bool kFull, int kTileRows>
  METATASNET_INLINE void tile(int panel, int first, int valid, Accumulators<kTileRows>& acc) {
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      if (!kFull && i >= valid) break;
      for (int v = 0; v < kVectors; ++v) {
        const int column = panel * kPanel + v * kLanes;
        const Vec dx = norm(v, acc[i][v], load_columns(source, first + i, column));
        const std::ptrdiff_t at = (first + i) * ld + column;
        if (sum) {
          store(sum + at, load(sum + at) + dx);
        } else {
          store(out + at, dx);
        }
      }
    }
  }

  METATASNET_INLINE void end(int) {}
};

}  // namespace

template <class Mode>
void input_weight_gradient(const InputWeightGradientArgs& a) {
  using Operand = typename Mode::Operand;
  auto* normalised = static_cast<Operand*>(a.scratch.rows[0]);
  const Vec slope = splat(a.norm.slope);
  int inputs = 0;
  for (const Source& source : a.sources) {
    for (int r = 0; r < a.rows; ++r) {
      Operand* row = normalised + static_cast<std::ptrdiff_t>(r) * a.ld_operand + inputs;
      visit_frame(source, r, [&](int c, Vec x) {
        put_operand<Mode>(row + c, (prelu(x, slope) - load(a.norm.mean + inputs + c)) * load(a.norm.rstd + inputs + c));
      });
    }
    inputs += source.channels;
  }
  add_column_sums(a.gradient, a.rows, a.ld_gradient, a.outputs, a.column_sums, a.sum.empty);
  std::ptrdiff_t ld = a.ld_gradient;
  const Operand* gradient = float_rows<Mode>(a.gradient, a.rows, a.ld_gradient, ld, a.scratch.rows[1]);
  outer<Operand>(as_units(gradient, a.rows, ld, a.ld_gradient, a.scratch.units[0]), panels_of(a.outputs),
                 as_units(normalised, a.rows, a.ld_operand, panels_of(inputs) * kPanel, a.scratch.units[1]), 0,
                 panels_of(inputs), units_in<Operand>(a.rows), a.sum);
}

template <class Mode>
void input_gradient(const InputGradientArgs& a) {
  using Operand = typename Mode::Operand;
  using Storage = typename Mode::Storage;
  std::ptrdiff_t ld = a.ld_gradient;
  const Operand* gradient = float_rows<Mode>(a.gradient, a.rows, a.ld_gradient, ld, a.scratch.rows[0]);
  Vec slope_sum = Vec{};
  for (int part = 0; part < (a.partial_gradient ? 2 : 1); ++part) {
    InputEpilogue<Mode> epilogue{a.sources[part],
                                 NormGradientColumn(a.norms[part]),
                                 a.norms[part],
                                 part ? nullptr : a.latent_gradient,
                                 static_cast<Storage*>(part ? a.partial_gradient : a.own_gradient),
                                 part ? a.ld_partial : a.ld};
    gemm(gradient, ld, a.rows, *a.weights[part], 0, a.weights[part]->panels, epilogue);
    slope_sum += epilogue.norm.slope_sum;
  }
  *a.slope_sum = sum_of(slope_sum);
}

METATASNET_INSTANTIATE(input_weight_gradient, InputWeightGradientArgs)
METATASNET_INSTANTIATE(input_gradient, InputGradientArgs)

}  // namespace metatasnet::METATASNET_ISA
