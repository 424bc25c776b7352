// The two storage types, and the passes as templates over them.
#pragma once

#include "cpu/isa/vector.h"
#include "cpu/backward_passes.h"

namespace metatasnet::METATASNET_ISA {

struct Float32 {
  using Storage = float;
  using Operand = float;
};

// On processors without a bfloat16 dot product the operands are rounded to bfloat16, but stored and multiplied as
// float32: the products are exactly the same, at float32's speed.
struct BFloat16 {
  using Storage = bfloat16;
#if defined(__AVX512BF16__)
  using Operand = bfloat16;
#else
  using Operand = float;
#endif
};

template <class Mode>
METATASNET_INLINE Vec put_operand(typename Mode::Operand* p, Vec v);
template <>
METATASNET_INLINE Vec put_operand<Float32>(float* p, Vec v) {
  return store_rounded(p, v);
}
template <>
METATASNET_INLINE Vec put_operand<BFloat16>(BFloat16::Operand* p, Vec v) {
#if defined(__AVX512BF16__)
  return store_rounded(p, v);
#else
  v = (Vec)rounded_bits(v);
  store(p, v);
  return v;
#endif
}

// Stored activations as operands: themselves if the types agree, else a converted copy of the tile's rows.
METATASNET_INLINE const float* operand_rows(const float* in, int, int, float*) { return in; }
#if defined(__AVX512BF16__)
METATASNET_INLINE const bfloat16* operand_rows(const bfloat16* in, int, int, bfloat16*) { return in; }
#else
METATASNET_INLINE const float* operand_rows(const bfloat16* in, int rows, int ld, float* scratch) {
  const int readable = (rows + kRows - 1) / kRows * kRows;
  for (std::ptrdiff_t i = 0; i < static_cast<std::ptrdiff_t>(readable) * ld; i += kLanes)
    store(scratch + i, load(in + i));
  return scratch;
}
#endif

template <class Mode>
void fold(const FoldArgs&);
template <class Mode>
void to_operands(const float* values, std::int64_t count, void* operands);
template <class Mode>
void block_input(const BlockInputArgs&);
template <class Mode>
void skip_output(const SkipOutputArgs&);
template <class Mode>
void depthwise(const DepthwiseArgs&);
template <class Mode>
void input_conv(const InputConvArgs&);
template <class Mode>
void mask_output(const MaskOutputArgs&);
template <class Mode>
void mask_product(const MaskProductArgs&);
template <class Mode>
void source_moments(const SourceMomentsArgs&);
template <class Mode>
void merge(const MergeArgs&);
template <class Mode>
void encode(const EncodeArgs&);
template <class Mode>
void decode(const DecodeArgs&);
template <class Mode>
void pack(const PackArgs&);
template <class Mode>
void mask_tail_gradient(const MaskTailGradientArgs&);
template <class Mode>
void mask_output_gradient(const MaskOutputGradientArgs&);
template <class Mode>
void norm_gradient(const NormGradientArgs&);
template <class Mode>
void norm_sums(const NormSumsArgs&);
template <class Mode>
void mix_gradient(const MixGradientArgs&);
template <class Mode>
void hidden_gradient(const HiddenGradientArgs&);
template <class Mode>
void depthwise_sums(const DepthwiseSumsArgs&);
template <class Mode>
void block_gradient(const BlockGradientArgs&);
template <class Mode>
void input_weight_gradient(const InputWeightGradientArgs&);
template <class Mode>
void input_gradient(const InputGradientArgs&);
template <class Mode>
void encode_gradient(const EncodeGradientArgs&);
template <class Mode>
void decode_gradient(const DecodeGradientArgs&);
template <class Mode>
void mel_gradient(const MelGradientArgs&);
template <class Mode>
void weight_gradient(const WeightGradientArgs&);
template <class Mode>
void overlap_add(const OverlapAddArgs&);
template <class Mode>
void cosines_gradient(const CosineArgs&);
void cosines(const CosineArgs&);
void expand(const ExpandArgs&);
void expand_gradient(const ExpandArgs&);
void combine(const CombineArgs&);
void sum_tiles(const SumTilesArgs&);

// Instantiate a pass for both storage types at the end of the file that defines it.
#define METATASNET_INSTANTIATE(pass, Args)  \
  template void pass<Float32>(const Args&); \
  template void pass<BFloat16>(const Args&);

}  // namespace metatasnet::METATASNET_ISA
