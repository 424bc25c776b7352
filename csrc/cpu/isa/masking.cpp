// The masking network around its blocks: the passes that read the latents, and the pass that makes masks from the skip
// sum.
//
// Source: Samuel et al. 2020, section 2; original model/mask_tcn.py, MaskTCN.
#include "cpu/isa/epilogue.h"
#include "cpu/isa/softmax.h"
#include "cpu/isa/source.h"

namespace metatasnet::METATASNET_ISA {

// FLOPs 2 K B per frame; each frame of the sources is read once and activated on the way into the operand tile.
template <class Mode>
void input_conv(const InputConvArgs& a) {
  using Operand = typename Mode::Operand;
  auto* operand = static_cast<Operand*>(a.operand);
  const Vec slope = splat(a.source_slope);
  for (int r = 0; r < a.rows; ++r) {
    Operand* row = operand + static_cast<std::ptrdiff_t>(r) * a.ld_operand;
    for (const Source& source : a.sources) {
      visit_frame(source, r, [&](int c, Vec x) { put_operand<Mode>(row + c, prelu(x, slope)); });
      row += source.channels;
    }
  }
  using Kept = typename Mode::Storage;
  Activate<float, Kept> activate{a.out, static_cast<Kept*>(a.kept), a.ld_out, {a.bias, {}}, splat(a.slope), a.moments,
                                 a.rows, {}};
  gemm(static_cast<const Operand*>(operand), a.ld_operand, a.rows, *a.weights, 0, a.weights->panels, activate);
}

template <class Mode>
void mask_output(const MaskOutputArgs& a) {
  using Storage = typename Mode::Storage;
  using Operand = typename Mode::Operand;
  Activate<Storage> activate{static_cast<Storage*>(a.out), static_cast<Storage*>(a.kept), a.ld_out, {a.bias, {}},
                             splat(a.slope), a.moments, a.rows, {}};
  const Operand* in =
      operand_rows(static_cast<const Storage*>(a.in), a.rows, a.ld_in, static_cast<Operand*>(a.operand));
  gemm(in, a.ld_in, a.rows, *a.weights, 0, a.weights->panels, activate);
}

// Bytes: the masks in and out, the latent once. The norm is applied as (m - mean) scale + shift: no cancellation.
template <class Mode>
void mask_product(const MaskProductArgs& a) {
  using Storage = typename Mode::Storage;
  with_instruments(a.instruments, a.softmax, [&](auto count) {
    for (int r = 0; r < a.rows; ++r) {
      const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(r) * a.ld;
      visit_frame(a.latent, r, [&](int c, Vec latent) {
        Vec m[kMostInstruments];
        each_instrument(count, [&](int i) {
          const MaskOperand& own = a.operands[i];
          const Vec stored = load(static_cast<const Storage*>(own.masked) + row + c);
          m[i] = (stored - load(own.mean + c)) * load(own.scale + c) + load(own.shift + c);
        });
        masks(m, count, latent);
        each_instrument(count, [&](int i) { store(static_cast<Storage*>(a.operands[i].masked) + row + c, m[i]); });
      });
    }
  });
}

METATASNET_INSTANTIATE(input_conv, InputConvArgs)
METATASNET_INSTANTIATE(mask_output, MaskOutputArgs)
METATASNET_INSTANTIATE(mask_product, MaskProductArgs)

}  // namespace metatasnet::METATASNET_ISA
