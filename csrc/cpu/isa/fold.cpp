// Packs weights. If a group norm comes before the convolution, it is folded into them.
//
// The mean's part of the bias is computed with the ROUNDED weights, which will multiply the activations. With the exact
// weights bfloat16 would lose an order of magnitude on signals whose mean is large compared with their deviation.
#include "cpu/isa/modes.h"

namespace metatasnet::METATASNET_ISA {
namespace {

// Row `k` of a panel times the norm's scale, rounded to the operand type; also adds its part of the bias.
template <class Mode>
METATASNET_INLINE Vec folded_row(const FoldArgs& a, const float* weights, int k, Vec& bias) {
  typename Mode::Operand stored[kLanes];
  const Vec w = load(weights);
  const Vec rounded = put_operand<Mode>(stored, w * a.scale[k]);
  bias += w * a.shift[k] - rounded * a.mean[k];
  return rounded;
}

constexpr int kPackBlock = 16;  // values of k, a cache line of every column

}  // namespace

template <class Mode>
void fold(const FoldArgs& a) {
  constexpr int kValues = sizeof(float) / sizeof(typename Mode::Operand);
  const int units = (a.inputs + kValues - 1) / kValues;
  for (int p = a.first; p < a.last; ++p) {
    for (int v = 0; v < kVectors; ++v) {
      const float* source = a.source + static_cast<std::ptrdiff_t>(p) * a.inputs * kPanel + v * kLanes;
      float* packed = static_cast<float*>(a.packed) + static_cast<std::ptrdiff_t>(p) * units * kPanel + v * kLanes;
      Vec bias = a.bias ? load(a.bias + p * kPanel + v * kLanes) : Vec{};
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
      store(a.folded_bias + p * kPanel + v * kLanes, bias);
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

// Packs any matrix into panels: `k` by `k` if columns are neighbours in memory, else column by column.
template <class Mode>
void pack(const PackArgs& a) {
  constexpr int kValues = sizeof(float) / sizeof(typename Mode::Operand);
  for (int p = a.first; p < a.last; ++p) {
    float* packed = static_cast<float*>(a.packed) + (p - a.first) * a.distance;
    const int column = p * kPanel, columns = a.columns - column < kPanel ? a.columns - column : kPanel;
    const float* source = a.source + column * a.column_stride;
    Vec scale[kVectors];
    for (int v = 0; v < kVectors; ++v)
      scale[v] = a.column_scale ? load_first(a.column_scale + column + v * kLanes, columns - v * kLanes) : splat(1.0f);
    float block[kPackBlock][kPanel] = {};
    for (int first = 0; first < a.units * kValues; first += kPackBlock) {
      const int rows = a.inputs - first < kPackBlock ? a.inputs - first : kPackBlock;
      const float* from = source + first * a.stride;
      if (rows < kPackBlock) __builtin_memset(block, 0, sizeof block);
      if (a.column_stride == 1) {
        for (int k = 0; k < rows; ++k)
          __builtin_memcpy(block[k], from + k * a.stride, sizeof(float) * static_cast<std::size_t>(columns));
      } else {
        for (int j = 0; j < columns; ++j)
          for (int k = 0; k < rows; ++k) block[k][j] = from[j * a.column_stride + k * a.stride];
      }
      for (int k = 0; k < kPackBlock && first + k < a.units * kValues; k += kValues, packed += kPanel) {
        for (int v = 0; v < kVectors; ++v) {
          typename Mode::Operand rounded[kLanes];
          Vec row = put_operand<Mode>(rounded, load(block[k] + v * kLanes) * scale[v]);
          if constexpr (kValues == 2) {
            const Vec next = put_operand<Mode>(rounded, load(block[k + 1] + v * kLanes) * scale[v]);
            row = (Vec)(((UVec)row >> 16) | (UVec)next);
          }
          store(packed + v * kLanes, row);
        }
      }
    }
  }
}

METATASNET_INSTANTIATE(pack, PackArgs)
METATASNET_INSTANTIATE(fold, FoldArgs)
template void to_operands<Float32>(const float*, std::int64_t, void*);
template void to_operands<BFloat16>(const float*, std::int64_t, void*);

}  // namespace metatasnet::METATASNET_ISA
