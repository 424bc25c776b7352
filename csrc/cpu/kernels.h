// The kernels of one instruction set: the passes for float32 and for bfloat16 storage.
#pragma once

#include "cpu/backward_passes.h"

namespace metatasnet {

// The passes for one storage type.
struct Passes {
  int operand_size;  // bytes; 4 where bfloat16 is emulated: rounded values in float32
  int storage_size;  // bytes of stored activations
  int values;        // operands in a unit of PackedMatrix
  void (*fold)(const FoldArgs&);
  void (*to_operands)(const float* values, std::int64_t count, void* operands);
  void (*block_input)(const BlockInputArgs&);
  void (*skip_output)(const SkipOutputArgs&);
  void (*depthwise)(const DepthwiseArgs&);
  void (*input_conv)(const InputConvArgs&);
  void (*mask_output)(const MaskOutputArgs&);
  void (*mask_product)(const MaskProductArgs&);
  void (*source_moments)(const SourceMomentsArgs&);
  void (*merge)(const MergeArgs&);
  void (*encode)(const EncodeArgs&);
  void (*decode)(const DecodeArgs&);
  void (*pack)(const PackArgs&);
  void (*mask_tail_gradient)(const MaskTailGradientArgs&);
  void (*mask_output_gradient)(const MaskOutputGradientArgs&);
  void (*norm_gradient)(const NormGradientArgs&);
  void (*norm_sums)(const NormSumsArgs&);
  void (*mix_gradient)(const MixGradientArgs&);
  void (*hidden_gradient)(const HiddenGradientArgs&);
  void (*depthwise_sums)(const DepthwiseSumsArgs&);
  void (*block_gradient)(const BlockGradientArgs&);
  void (*input_weight_gradient)(const InputWeightGradientArgs&);
  void (*input_gradient)(const InputGradientArgs&);
  void (*encode_gradient)(const EncodeGradientArgs&);
  void (*decode_gradient)(const DecodeGradientArgs&);
  void (*mel_gradient)(const MelGradientArgs&);
  void (*weight_gradient)(const WeightGradientArgs&);
  void (*overlap_add)(const OverlapAddArgs&);
  void (*cosines)(const CosineArgs&);
  void (*cosines_gradient)(const CosineArgs&);
  void (*expand)(const ExpandArgs&);
  void (*expand_gradient)(const ExpandArgs&);
  void (*combine)(const CombineArgs&);
  void (*sum_tiles)(const SumTilesArgs&);
};

struct Kernels {
  const char* name;
  int panel;  // columns of a packed panel
  Passes float32;
  Passes bfloat16;
};

}  // namespace metatasnet
