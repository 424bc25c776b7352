// First half of a TCN block, and what ends the last one.
//
//   x += W_res n(h) + b_res          h: depthwise output of the block before, n: its group norm, folded into W and b
//   skip += W_skip n(h) + b_skip     h is read once for both
//   y = prelu(W_conv x)              while the tile of x is still in the cache
//
// Bytes per frame and channel (B = H), float32 / bfloat16: h 4 / 2, x 8, skip 8, y 4 / 2. FLOPs: 2 H (2 B) + 2 B H.
// Source: Samuel et al. 2020, section 2; original model/mask_tcn.py, TCNLayer and MaskTCN.
#include "cpu/isa/epilogue.h"

namespace metatasnet::METATASNET_ISA {
namespace {

template <class Mode>
struct AddToStreams {
  float* x;
  float* skip;
  std::ptrdiff_t ld;
  bool skip_is_empty;
  int residual_panels;
  PanelBias bias;
  typename Mode::Operand* x_operand;
  typename Mode::Storage* kept_x;

  METATASNET_INLINE void begin(int panel) { bias.begin(panel); }

  template <int kTileRows>
  METATASNET_INLINE void prefetch(int panel, int first) {
    if (panel < residual_panels) {
      prefetch_tile<kTileRows>(x + first * ld + panel * kPanel, ld);
    } else {
      prefetch_tile<kTileRows>(skip + first * ld + (panel - residual_panels) * kPanel, ld);
    }
  }

  template <bool kFull, int kTileRows>
  METATASNET_INLINE void tile(int panel, int first, int valid, Accumulators<kTileRows>& acc) {
    if (panel < residual_panels) {
      const std::ptrdiff_t at = first * ld + panel * kPanel;
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 16
        for (int i = 0; i < kTileRows; ++i) {
          float* p = x + at + i * ld + v * kLanes;
          const Vec sum = load(p) + (acc[i][v] + bias.of[v]);
          store(p, sum);
          if constexpr (sizeof(typename Mode::Storage) != sizeof(float))
            put_operand<Mode>(x_operand + at + i * ld + v * kLanes, sum);
          acc[i][v] = sum;
        }
      }
      if (kept_x) {
#pragma GCC unroll 16
        for (int i = 0; i < kTileRows; ++i) {
          if (!kFull && i >= valid) break;
          stream(kept_x + at + i * ld, acc[i]);
        }
      }
    } else {
      float* at = skip + first * ld + (panel - residual_panels) * kPanel;
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 16
        for (int i = 0; i < kTileRows; ++i) {
          float* p = at + i * ld + v * kLanes;
          const Vec more = acc[i][v] + bias.of[v];
          store(p, skip_is_empty ? more : load(p) + more);
        }
      }
    }
  }

  METATASNET_INLINE void end(int) {}
};

template <class T>
struct AddAndActivate : Activate<T> {
  const float* skip;
  std::ptrdiff_t ld_skip;
  bool skip_is_empty;

  template <bool kFull, int kTileRows>
  METATASNET_INLINE void tile(int panel, int first, int valid, Accumulators<kTileRows>& acc) {
    if (!skip_is_empty) {
      const float* at = skip + first * ld_skip + panel * kPanel;
#pragma GCC unroll 16
      for (int i = 0; i < kTileRows; ++i)
        for (int v = 0; v < kVectors; ++v) acc[i][v] += load(at + i * ld_skip + v * kLanes);
    }
    Activate<T>::template tile<kFull, kTileRows>(panel, first, valid, acc);
  }
};

// The first block's input is the group norm of the input convolution: an affine map of what is stored.
template <class Mode>
void normalise(const BlockInputArgs& a) {
  for (int r = 0; r < a.rows; ++r) {
    float* x = a.x + static_cast<std::ptrdiff_t>(r) * a.ld_x;
    for (int c = 0; c < a.ld_x; c += kLanes) {
      const Vec v = load(x + c) * load(a.x_scale + c) + load(a.x_shift + c);
      store(x + c, v);
      const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(r) * a.ld_x + c;
      if constexpr (sizeof(typename Mode::Storage) != sizeof(float))
        put_operand<Mode>(static_cast<typename Mode::Operand*>(a.x_operand) + at, v);
      if (a.kept_x) store(static_cast<typename Mode::Storage*>(a.kept_x) + at, v);
    }
  }
}

}  // namespace

template <class Mode>
void block_input(const BlockInputArgs& a) {
  using Storage = typename Mode::Storage;
  using Operand = typename Mode::Operand;
  auto* x_operand = static_cast<Operand*>(a.x_operand);
  if (a.hidden) {
    AddToStreams<Mode> streams{a.x, a.skip, a.ld_x, a.skip_is_empty, a.residual_panels,
                              {a.mix_bias, {}}, x_operand, static_cast<Storage*>(a.kept_x)};
    const Operand* h = operand_rows(static_cast<const Storage*>(a.hidden), a.rows, a.ld_hidden,
                                    static_cast<Operand*>(a.hidden_operand));
    gemm(h, a.ld_hidden, a.rows, *a.mix, 0, a.mix->panels, streams);
  } else {
    normalise<Mode>(a);
  }
  Activate<Storage> activate{static_cast<Storage*>(a.out), static_cast<Storage*>(a.kept), a.ld_out, {nullptr, {}},
                             splat(a.slope), a.moments, a.rows, {}};
  if constexpr (sizeof(Storage) == sizeof(float)) {
    gemm(static_cast<const float*>(a.x), a.ld_x, a.rows, *a.conv, 0, a.conv->panels, activate);
  } else {
    gemm(static_cast<const Operand*>(x_operand), a.ld_x, a.rows, *a.conv, 0, a.conv->panels, activate);
  }
}

template <class Mode>
void skip_output(const SkipOutputArgs& a) {
  using Storage = typename Mode::Storage;
  using Operand = typename Mode::Operand;
  AddAndActivate<Storage> epilogue;
  epilogue.out = static_cast<Storage*>(a.out);
  epilogue.kept = static_cast<Storage*>(a.kept);
  epilogue.ld = a.ld_out;
  epilogue.bias.values = a.bias;
  epilogue.slope = splat(a.slope);
  epilogue.moments = a.moments;
  epilogue.rows = a.rows;
  epilogue.skip = a.skip;
  epilogue.ld_skip = a.ld_skip;
  epilogue.skip_is_empty = a.skip_is_empty;
  const Operand* h =
      operand_rows(static_cast<const Storage*>(a.hidden), a.rows, a.ld_hidden, static_cast<Operand*>(a.hidden_operand));
  gemm(h, a.ld_hidden, a.rows, *a.weights, 0, a.weights->panels, epilogue);
}

METATASNET_INSTANTIATE(block_input, BlockInputArgs)
METATASNET_INSTANTIATE(skip_output, SkipOutputArgs)

}  // namespace metatasnet::METATASNET_ISA
