// Packing of weights, with a group norm folded in where one comes before the convolution.
//
// The bias takes the mean's share from the ROUNDED weights, those that will multiply the activations: with the exact
// ones bfloat16 would lose an order of magnitude on signals whose mean is large beside their deviation.
#include "cpu/isa/modes.h"

namespace metatasnet::METATASNET_ISA {
namespace {

// Row `k` of a panel times the norm's scale, rounded as the operand type rounds; its share of the bias is added.
template <class Mode>
METATASNET_INLINE Vec folded_row(const FoldArgs& a, const float* weights, int k, Vec& bias) {
  typename Mode::Operand stored[kLanes];
  const Vec w = load(weights);
  if (!a.scale) return put_operand<Mode>(stored, w);
  const Vec rounded = put_operand<Mode>(stored, w * a.scale[k]);
  bias += w * a.shift[k] - rounded * a.mean[k];
  return rounded;
}

}  // namespace

template <class Mode>
void fold(const FoldArgs& a) {
  constexpr int kValues = sizeof(float) / sizeof(typename Mode::Operand);
  const int units = (a.inputs + kValues - 1) / kValues;
  for (int p = a.first; p < a.last; ++p) {
    for (int v = 0; v < kVectors; ++v) {
      const float* source = a.source + static_cast<std::ptrdiff_t>(p) * a.inputs * kPanel + v * kLanes;
      float* packed = static_cast<float*>(a.packed) + static_cast<std::ptrdiff_t>(p) * units * kPanel + v * kLanes;
      Vec bias = a.scale && a.bias ? load(a.bias + p * kPanel + v * kLanes) : Vec{};
      for (int u = 0; u < units; ++u) {
        const int k = u * kValues;
        Vec row = folded_row<Mode>(a, source + static_cast<std::ptrdiff_t>(k) * kPanel, k, bias);
        if constexpr (kValues == 2) {
          const bool odd = k + 1 >= a.inputs;
          const Vec next =
              odd ? Vec{} : folded_row<Mode>(a, source + static_cast<std::ptrdiff_t>(k + 1) * kPanel, k + 1, bias);
          row = (Vec)(((UVec)row >> 16) | (UVec)next);
        }
        store(packed + static_cast<std::ptrdiff_t>(u) * kPanel, row);
      }
      if (a.scale) store(a.folded_bias + p * kPanel + v * kLanes, bias);
    }
  }
}

template <class Mode>
void to_operands(const float* values, std::int64_t count, void* operands) {
  auto* out = static_cast<typename Mode::Operand*>(operands);
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) put_operand<Mode>(out + i, load(values + i));
  if (i == count) return;
  typename Mode::Operand lanes[kLanes];
  put_operand<Mode>(lanes, load_first(values + i, static_cast<int>(count - i)));
  __builtin_memcpy(out + i, lanes, sizeof(*out) * static_cast<std::size_t>(count - i));
}

METATASNET_INSTANTIATE(fold, FoldArgs)
template void to_operands<Float32>(const float*, std::int64_t, void*);
template void to_operands<BFloat16>(const float*, std::int64_t, void*);

}  // namespace metatasnet::METATASNET_ISA
