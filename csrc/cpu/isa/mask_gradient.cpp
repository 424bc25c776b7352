// The end of the masking network, backward: product with the latent, softmax, norm, mask_output.
//
//   m_i = softmax over i of n_i;  s_i = latent m_i;  n_i = scale (g - mean) + shift, g = prelu(w);  w = W n(prelu(skip))
//
//   dlatent = sum_i ds_i m_i;  dn_i = latent m_i (ds_i - sum_j m_j ds_j)
//
// The sum over j is over the instruments that share the softmax; for a sigmoid it is only its own term.
#include "cpu/isa/gradient.h"
#include "cpu/isa/softmax.h"
#include "cpu/isa/source.h"

namespace metatasnet::METATASNET_ISA {
namespace {

// One panel of channels, for all frames of a tile.
template <class Storage, class Count>
METATASNET_INLINE void tail_columns(const MaskTailGradientArgs& a, int column, Count count) {
  const Vec slope = splat(a.slope);
  Vec sums[kMostInstruments][kVectors], products[kMostInstruments][kVectors];
  each_instrument(count, [&](int i) METATASNET_INLINE_LAMBDA {
    for (int v = 0; v < kVectors; ++v) sums[i][v] = products[i][v] = Vec{};
  });
  for (int r = 0; r < a.rows; ++r) {
    const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(r) * a.ld + column;
    Vec dn[kMostInstruments][kVectors], on_latent[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const int c = column + v * kLanes;
      const std::ptrdiff_t at = row + v * kLanes;
      const Vec latent = load_columns(a.latent, r, c);
      Vec centred[kMostInstruments], m[kMostInstruments], ds[kMostInstruments];
      each_instrument(count, [&](int i) METATASNET_INLINE_LAMBDA {
        const MaskTailOperand& own = a.operands[i];
        centred[i] = activated<Storage>(load(static_cast<const Storage*>(own.kept) + at), slope) - load(own.mean + c);
        m[i] = centred[i] * load(own.scale + c) + load(own.shift + c);
        ds[i] = load_columns(own.gradient, r, c);
      });
      masks(m, count, splat(1.0f));
      Vec shared = Vec{}, total = Vec{};
      each_instrument(count, [&](int i) METATASNET_INLINE_LAMBDA {
        total += m[i] * ds[i];
        if (i < count.softmax()) shared = total;
      });
      on_latent[v] = total;
      each_instrument(count, [&](int i) METATASNET_INLINE_LAMBDA {
        dn[i][v] = latent * m[i] * (ds[i] - (i < count.softmax() ? shared : m[i] * ds[i]));
        sums[i][v] += dn[i][v];
        products[i][v] += dn[i][v] * centred[i];
      });
    }
    stream(a.latent_gradient + row, on_latent);
    each_instrument(count, [&](int i) METATASNET_INLINE_LAMBDA {
      stream(static_cast<Storage*>(a.operands[i].normed) + row, dn[i]);
    });
  }
  each_instrument(count, [&](int i) METATASNET_INLINE_LAMBDA {
    const MaskTailOperand& own = a.operands[i];
    for (int v = 0; v < kVectors; ++v) {
      const int c = column + v * kLanes;
      store(own.sums + c, sums[i][v]);
      store(own.sums + a.ld + c, products[i][v] * load(own.rstd + c));
    }
  });
}

}  // namespace

// Bytes per frame and channel: latent 4 / 2, and of each instrument gradient, kept and result 4 / 2 each.
template <class Mode>
void mask_tail_gradient(const MaskTailGradientArgs& a) {
  with_instruments(a.instruments, a.softmax, [&](auto count) {
    for (int c = 0; c < a.ld; c += kPanel) tail_columns<typename Mode::Storage>(a, c, count);
  });
  stream_end();
}

// FLOPs per frame: 4 N B. The gradient before the PReLU is never stored.
template <class Mode>
void mask_output_gradient(const MaskOutputGradientArgs& a) {
  using Storage = typename Mode::Storage;
  using Operand = typename Mode::Operand;
  auto* rows = static_cast<Operand*>(a.scratch.rows[0]);
  NormGradientColumn<typename Mode::Storage> norm(a.norm);
  for (int c = 0; c < a.outputs; c += kPanel) {
    norm.begin(a.norm, c);
    Vec sums[kVectors] = {};
    for (int r = 0; r < a.rows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        const int column = c + v * kLanes;
        const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(r) * a.ld + column;
        const Vec dn = load(static_cast<const Storage*>(a.normed) + at);
        const Vec d = norm(v, dn, load(static_cast<const Storage*>(a.kept) + at));
        sums[v] += put_operand<Mode>(rows + static_cast<std::ptrdiff_t>(r) * a.ld_operand + column, d);
      }
    }
    add_columns(a.column_sums, c, sums, a.sum.empty);
  }
  *a.slope_sum = sum_of(norm.slope_sum);

  const int row_panels = panels_of(a.outputs);
  Ahead ahead;
  ahead.add(a.normed, tile_bytes<Storage>(a.rows, a.ld));
  ahead.add(a.kept, tile_bytes<Storage>(a.rows, a.ld));
  ahead.add(a.input_kept, tile_bytes<Storage>(a.rows, a.ld_input));
  outer<Operand>(as_units(rows, a.rows, a.ld_operand, row_panels * kPanel, a.scratch.units[0]), row_panels,
                 normalised_units<Mode>(a.rows, a.inputs, a.input_kept, a.ld_input, a.input, a.scratch.units[1]), 0,
                 a.weights->panels,
                 units_in<Operand>(a.rows), a.sum, ahead);
  StoreRows<float> store_rows{a.input_gradient, a.ld_input_gradient};
  gemm(static_cast<const Operand*>(rows), a.ld_operand, a.rows, *a.weights, 0, a.weights->panels, store_rows);
}

METATASNET_INSTANTIATE(mask_tail_gradient, MaskTailGradientArgs)
METATASNET_INSTANTIATE(mask_output_gradient, MaskOutputGradientArgs)

}  // namespace metatasnet::METATASNET_ISA
