// Encoder and decoder backward, tile by tile: compute the gradients of activations, and write all activations as units,
// from which outer() makes the gradients of weights over many tiles.
//
//   encoder:  dh = (W_2^T dlatent) where h > 0;  dmel, dbank = (W_1^T dh) where bank > 0;  dsignal: overlap-add
//   decoder:  dwide = (filters dsignal) where wide > 0;  dlatent = W dwide
#include "cpu/isa/gradient.h"
#include "cpu/isa/source.h"
#include "cpu/isa/stream_rows.h"

namespace metatasnet::METATASNET_ISA {
namespace {

// A product, set to zero except where `kept` is positive, as operands.
template <class Mode>
struct Gate {
  typename Mode::Operand* out;
  const typename Mode::Storage* kept;
  std::ptrdiff_t ld;

  METATASNET_INLINE void begin(int) {}
  template <int kTileRows>
  METATASNET_INLINE void prefetch(int panel, int first) {
    prefetch_tile<kTileRows>(kept + first * ld + panel * kPanel, ld);
  }
  template <bool kFull, int kTileRows>
  METATASNET_INLINE void tile(int panel, int first, int valid, Accumulators<kTileRows>& acc) {
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      if (!kFull && i >= valid) break;
      for (int v = 0; v < kVectors; ++v) {
        const std::ptrdiff_t at = (first + i) * ld + panel * kPanel + v * kLanes;
        put_operand<Mode>(out + at, select(load(kept + at) > Vec{}, acc[i][v], Vec{}));
      }
    }
  }
  METATASNET_INLINE void end(int) {}
};

// Write rows of operands as units, panel by panel.
METATASNET_INLINE void put_units(const float* rows, int count, std::ptrdiff_t ld, int channels, const UnitsRoom& to) {
  for (int p = 0; p < panels_of(channels); ++p) {
    auto* out = reinterpret_cast<float*>(to.data + p * to.panel);
    for (int r = 0; r < count; ++r)
      for (int v = 0; v < kVectors; ++v)
        store(out + r * kPanel + v * kLanes, load(rows + r * ld + p * kPanel + v * kLanes));
  }
}

#if defined(__AVX512BF16__)
METATASNET_INLINE void put_units(const bfloat16* rows, int count, std::ptrdiff_t ld, int channels,
                                 const UnitsRoom& to) {
  for (int p = 0; p < panels_of(channels); ++p) {
    auto* out = reinterpret_cast<float*>(to.data + p * to.panel);
    for (int r = 0; r < count; r += 2) {
      const bfloat16* even = rows + r * ld + p * kPanel;
      interleave(even, r + 1 < count ? even + ld : nullptr, kPanel, out + r / 2 * kPanel);
    }
  }
}
#endif

template <class Mode>
METATASNET_INLINE void put_source(const Source& source, int rows, typename Mode::Operand* out, std::ptrdiff_t ld) {
  for (int r = 0; r < rows; ++r) visit_frame(source, r, [&](int c, Vec x) { put_operand<Mode>(out + r * ld + c, x); });
}

}  // namespace

template <class Mode>
void encode_gradient(const EncodeGradientArgs& a) {
  using Operand = typename Mode::Operand;
  using Storage = typename Mode::Storage;
  auto *first = static_cast<Operand*>(a.scratch.rows[0]), *second = static_cast<Operand*>(a.scratch.rows[1]);
  const auto *wide = static_cast<const Storage*>(a.kept_wide), *bank = static_cast<const Storage*>(a.kept_bank);
  put_source<Mode>(a.gradient, a.rows, first, a.ld_wide);
  put_units(first, a.rows, a.ld_wide, a.channels, a.latent_gradient);
  Gate<Mode> to_wide{second, wide, a.ld_wide};
  gemm(static_cast<const Operand*>(first), a.ld_wide, a.rows, *a.bottleneck_2, 0, a.bottleneck_2->panels, to_wide);
  put_units(second, a.rows, a.ld_wide, a.channels, a.wide_gradient);
  auto* bank_rows = a.bank_rows ? static_cast<Operand*>(a.bank_rows) : first;
  Gate<Mode> to_bank{bank_rows, bank, a.ld_bank};
  gemm(static_cast<const Operand*>(second), a.ld_wide, a.rows, *a.bottleneck_1, 0, a.bottleneck_1->panels, to_bank);
  put_units(bank_rows, a.rows, a.ld_bank, a.bank_channels, a.bank_gradient);
  put_units(kept_rows<Mode>(wide, a.rows, a.ld_wide, a.scratch.units[0]), a.rows, a.ld_wide, a.channels, a.wide);
  put_units(kept_rows<Mode>(bank, a.rows, a.ld_bank, a.scratch.units[0]), a.rows, a.ld_bank, a.bank_channels, a.bank);
  put_units(static_cast<const Operand*>(a.signal), a.rows, a.stride, a.longest, a.window);
}

template <class Mode>
void decode_gradient(const DecodeGradientArgs& a) {
  using Operand = typename Mode::Operand;
  using Storage = typename Mode::Storage;
  auto *first = static_cast<Operand*>(a.scratch.rows[0]), *second = static_cast<Operand*>(a.scratch.rows[1]);
  const auto* wide = static_cast<const Storage*>(a.kept_wide);
  Gate<Mode> to_wide{first, wide, a.ld_wide};
  gemm(static_cast<const Operand*>(a.signal), a.stride, a.rows, *a.filters, 0, a.filters->panels, to_wide);
  put_units(first, a.rows, a.ld_wide, a.wide_channels, a.wide_gradient);
  StreamRows<Storage> to_latent{static_cast<Storage*>(a.latent_gradient), a.ld_gradient};
  gemm(static_cast<const Operand*>(first), a.ld_wide, a.rows, *a.bottleneck, 0, a.bottleneck->panels, to_latent);
  put_source<Mode>(a.latent, a.rows, second, a.ld_latent);
  put_units(second, a.rows, a.ld_latent, a.latent.channels, a.latent_units);
  put_units(kept_rows<Mode>(wide, a.rows, a.ld_wide, a.scratch.units[0]), a.rows, a.ld_wide, a.wide_channels, a.wide);
  put_units(static_cast<const Operand*>(a.signal), a.rows, a.stride, a.longest, a.window);
}

// The transpose of the interpolation: each frame's gradient goes to the two STFT frames on both sides of it.
template <class Mode>
void mel_gradient(const MelGradientArgs& a) {
  constexpr int kValues = Arithmetic<typename Mode::Operand>::kValues;
  for (int p = a.first; p < a.last; ++p) {
    const auto* units = reinterpret_cast<const float*>(a.gradient.data + p * a.gradient.panel);
    for (int r = 0; r < a.rows; ++r) {
      float* here = a.mel + a.mel_frame[r] * a.ld_mel + p * kPanel;
      float* next = a.mel + a.mel_next[r] * a.ld_mel + p * kPanel;
      for (int v = 0; v < kVectors; ++v) {
        Vec d = load(units + r / kValues * kPanel + v * kLanes);
        if constexpr (kValues == 2) d = (Vec)(r % 2 ? (UVec)d & 0xffff0000u : (UVec)d << 16);
        const Vec share = d * a.mel_weight[r];
        store(here + v * kLanes, load(here + v * kLanes) + (d - share));
        store(next + v * kLanes, load(next + v * kLanes) + share);
      }
    }
  }
}

template <class Mode>
void weight_gradient(const WeightGradientArgs& a) {
  Ahead ahead;
  outer<typename Mode::Operand>(a.rows, a.row_panels, a.columns, a.first, a.last, a.units, a.sum, ahead);
}

METATASNET_INSTANTIATE(encode_gradient, EncodeGradientArgs)
METATASNET_INSTANTIATE(decode_gradient, DecodeGradientArgs)
METATASNET_INSTANTIATE(mel_gradient, MelGradientArgs)
METATASNET_INSTANTIATE(weight_gradient, WeightGradientArgs)

}  // namespace metatasnet::METATASNET_ISA
