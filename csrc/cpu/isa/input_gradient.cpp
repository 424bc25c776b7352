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
  NormGradientColumn<typename Mode::Storage> norm;
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
  using Storage = typename Mode::Storage;
  Ahead ahead;
  for (const Source& source : a.sources)
    if (source.channels) ahead.add(source.data, a.rows * source.stride * (source.is_bfloat16 ? 2 : 4));
  auto* normalised = static_cast<Operand*>(a.scratch.rows[0]);
  const Vec slope = splat(a.norm.slope);
  int inputs = 0;
  for (const Source& source : a.sources) {
    for (int r = 0; r < a.rows; ++r) {
      Operand* row = normalised + static_cast<std::ptrdiff_t>(r) * a.ld_operand + inputs;
      visit_frame(source, r, [&](int c, Vec x) {
        put_operand<Mode>(row + c, (activated<Storage>(x, slope) - load(a.norm.mean + inputs + c)) * load(a.norm.rstd + inputs + c));
      });
    }
    inputs += source.channels;
  }
  outer<Operand>(float_units<Mode>(a.gradient, a.rows, panels_of(a.outputs) * kPanel, a.ld_gradient,
                                   a.scratch.units[0], a.column_sums, a.sum.empty),
                 panels_of(a.outputs),
                 as_units(normalised, a.rows, a.ld_operand, panels_of(inputs) * kPanel, a.scratch.units[1]), 0,
                 panels_of(inputs), units_in<Operand>(a.rows), a.sum, ahead);
}

// Panel by panel, so that the latent and its gradient stay in the first-level cache for all instruments.
template <class Mode>
void input_gradient(const InputGradientArgs& a) {
  using Operand = typename Mode::Operand;
  using Storage = typename Mode::Storage;
  const Operand* gradients[kMostInstruments];
  std::ptrdiff_t ld = a.ld_gradient;
  Vec slope_sums[kMostInstruments] = {};
  for (int i = 0; i < a.instruments; ++i) {
    ld = a.ld_gradient;
    auto* room = static_cast<Operand*>(a.scratch.rows[0]) + static_cast<std::ptrdiff_t>(i) * kTile * a.ld_gradient;
    gradients[i] = float_rows<Mode>(a.operands[i].gradient, a.rows, a.ld_gradient, ld, room);
  }
  for (int part = 0; part < 2; ++part) {
    if (part && !a.operands[0].partial_gradient) break;
    for (int p = 0; p < a.operands[0].weights[part]->panels; ++p) {
      for (int i = 0; i < a.instruments; ++i) {
        const InputGradientOperand& own = a.operands[i];
        InputEpilogue<Mode> epilogue{own.sources[part],
                                     NormGradientColumn<Storage>(own.norms[part]),
                                     own.norms[part],
                                     part ? nullptr : a.latent_gradient,
                                     static_cast<Storage*>(part ? own.partial_gradient : own.own_gradient),
                                     part ? a.ld_partial : a.ld};
        gemm(gradients[i], ld, a.rows, *own.weights[part], p, p + 1, epilogue);
        slope_sums[i] += epilogue.norm.slope_sum;
      }
    }
  }
  for (int i = 0; i < a.instruments; ++i) *a.operands[i].slope_sum = sum_of(slope_sums[i]);
}

METATASNET_INSTANTIATE(input_weight_gradient, InputWeightGradientArgs)
METATASNET_INSTANTIATE(input_gradient, InputGradientArgs)

}  // namespace metatasnet::METATASNET_ISA
