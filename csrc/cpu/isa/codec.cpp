// Encoder and decoder, tile by tile: frames and wide activations stay in the cache between the products.
//
// Source: Samuel et al. 2020, section 2.3; original model/encoder.py and model/decoder.py.
#include "cpu/isa/epilogue.h"
#include "cpu/isa/source.h"
#include "cpu/isa/stream_rows.h"

namespace metatasnet::METATASNET_ISA {
namespace {

struct Plain {
  METATASNET_INLINE void begin(int) {}
  template <int>
  METATASNET_INLINE void prefetch(int, int) {}
  METATASNET_INLINE void end(int) {}
};

template <class Mode>
struct ReluToOperand : Plain {
  typename Mode::Operand* out;
  typename Mode::Storage* kept;
  int kept_begin, kept_end;
  std::ptrdiff_t ld;

  template <bool kFull, int kTileRows>
  METATASNET_INLINE void tile(int panel, int first, int, Accumulators<kTileRows>& acc) {
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      const std::ptrdiff_t at = (first + i) * ld + panel * kPanel;
      Vec x[kVectors];
      for (int v = 0; v < kVectors; ++v) x[v] = put_operand<Mode>(out + at + v * kLanes, relu(acc[i][v]));
      if (kept && first + i >= kept_begin && first + i < kept_end) stream(kept + at, x);
    }
  }

  METATASNET_INLINE void end(int) {
    if (kept) stream_end();
  }
};

// Interpolating the spectrogram's share commutes with the convolution, so the share is added here, before the ReLU.
template <class Mode>
struct AddMelRelu : Plain {
  const EncodeArgs& args;
  typename Mode::Operand* out;
  typename Mode::Storage* kept;
  std::ptrdiff_t ld;

  explicit AddMelRelu(const EncodeArgs& a)
      : args(a),
        out(static_cast<typename Mode::Operand*>(a.wide_operand)),
        kept(static_cast<typename Mode::Storage*>(a.kept_wide)),
        ld(a.ld_wide) {}

  METATASNET_INLINE Vec share(int row, int column) const {
    if (!args.mel) return Vec{};
    const Vec from = load(args.mel + args.mel_frame[row] * args.ld_mel + column);
    const Vec to = load(args.mel + args.mel_next[row] * args.ld_mel + column);
    return (to - from) * args.mel_weight[row] + from;
  }

  template <bool kFull, int kTileRows>
  METATASNET_INLINE void tile(int panel, int first, int valid, Accumulators<kTileRows>& acc) {
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      if (!kFull && i >= valid) break;
      const int column = panel * kPanel;
      const std::ptrdiff_t at = (first + i) * ld + column;
      Vec x[kVectors];
      for (int v = 0; v < kVectors; ++v)
        x[v] = put_operand<Mode>(out + at + v * kLanes, relu(acc[i][v] + share(first + i, column + v * kLanes)));
      if (kept) stream(kept + at, x);
    }
  }

  METATASNET_INLINE void end(int) {
    if (kept) stream_end();
  }
};

template <class T>
struct Store : Plain {
  T* out;
  std::ptrdiff_t ld;

  template <bool kFull, int kTileRows>
  METATASNET_INLINE void tile(int panel, int first, int valid, Accumulators<kTileRows>& acc) {
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      if (!kFull && i >= valid) break;
      for (int v = 0; v < kVectors; ++v) store(out + (first + i) * ld + panel * kPanel + v * kLanes, acc[i][v]);
    }
  }
};

// Frames overlap in the signal. Rows are added in order, so that every sample is summed in the same order, whatever the
// tile.
struct OverlapAdd : Plain {
  float* signal;
  std::ptrdiff_t stride;

  template <bool kFull, int kTileRows>
  METATASNET_INLINE void tile(int panel, int first, int valid, Accumulators<kTileRows>& acc) {
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      if (!kFull && i >= valid) break;
      for (int v = 0; v < kVectors; ++v) {
        float* at = signal + (first + i) * stride + panel * kPanel + v * kLanes;
        store(at, load(at) + acc[i][v]);
      }
    }
  }
};

}  // namespace

template <class Mode>
void encode(const EncodeArgs& a) {
  using Operand = typename Mode::Operand;
  auto* bank = static_cast<Operand*>(a.bank_operand);
  auto* wide = static_cast<Operand*>(a.wide_operand);
  ReluToOperand<Mode> to_bank;
  to_bank.out = bank;
  to_bank.kept = static_cast<typename Mode::Storage*>(a.kept_bank);
  to_bank.kept_begin = 0;
  to_bank.kept_end = a.rows;
  to_bank.ld = a.ld_bank;
  gemm(static_cast<const Operand*>(a.signal), a.stride, a.rows, *a.bank, 0, a.bank->panels, to_bank);
  AddMelRelu<Mode> to_wide(a);
  gemm(static_cast<const Operand*>(bank), a.ld_bank, a.rows, *a.bottleneck_1, 0, a.bottleneck_1->panels, to_wide);
  auto* latent = static_cast<typename Mode::Storage*>(a.latent);
  const auto put = [&](auto to_latent) METATASNET_INLINE_LAMBDA {
    gemm(static_cast<const Operand*>(wide), a.ld_wide, a.rows, *a.bottleneck_2, 0, a.bottleneck_2->panels, to_latent);
  };
  if (a.kept_wide) {
    put(StreamRows<typename Mode::Storage>{latent, a.ld_latent});
  } else {
    put(Store<typename Mode::Storage>{{}, latent, a.ld_latent});
  }
}

template <class Mode>
void overlap_add(const OverlapAddArgs& a) {
  using Operand = typename Mode::Operand;
  OverlapAdd to_signal;
  to_signal.signal = a.signal;
  to_signal.stride = a.stride;
  gemm(static_cast<const Operand*>(a.operands), a.ld, a.rows, *a.filters, 0, a.filters->panels, to_signal);
}

template <class Mode>
void decode(const DecodeArgs& a) {
  using Operand = typename Mode::Operand;
  auto* latent = static_cast<Operand*>(a.latent_operand);
  auto* wide = static_cast<Operand*>(a.wide_operand);
  for (int r = 0; r < a.rows; ++r) {
    Operand* row = latent + static_cast<std::ptrdiff_t>(r) * a.ld_latent;
    visit_frame(a.latent, r, [&](int c, Vec x) { put_operand<Mode>(row + c, x); });
  }
  ReluToOperand<Mode> to_wide;
  to_wide.out = wide;
  to_wide.kept = static_cast<typename Mode::Storage*>(a.kept_wide);
  to_wide.kept_begin = a.kept_begin;
  to_wide.kept_end = a.kept_end;
  to_wide.ld = a.ld_wide;
  gemm(static_cast<const Operand*>(latent), a.ld_latent, a.rows, *a.bottleneck, 0, a.bottleneck->panels, to_wide);
  overlap_add<Mode>({a.rows, wide, a.ld_wide, a.filters, a.signal, a.stride});
}

METATASNET_INSTANTIATE(encode, EncodeArgs)
METATASNET_INSTANTIATE(decode, DecodeArgs)
METATASNET_INSTANTIATE(overlap_add, OverlapAddArgs)

}  // namespace metatasnet::METATASNET_ISA
