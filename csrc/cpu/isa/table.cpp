// The table of this instruction set's passes, for the dispatcher.
#include "cpu/isa/gemm.h"
#include "cpu/isa/modes.h"
#include "cpu/kernels.h"

#define METATASNET_STRING_(x) #x
#define METATASNET_STRING(x) METATASNET_STRING_(x)

namespace metatasnet::METATASNET_ISA {
namespace {

template <class Mode>
constexpr Passes passes() {
  return {sizeof(typename Mode::Operand),
          sizeof(typename Mode::Storage),
          Arithmetic<typename Mode::Operand>::kValues,
          fold<Mode>,
          to_operands<Mode>,
          block_input<Mode>,
          skip_output<Mode>,
          depthwise<Mode>,
          input_conv<Mode>,
          mask_output<Mode>,
          mask_product<Mode>,
          source_moments<Mode>,
          merge<Mode>,
          encode<Mode>,
          decode<Mode>,
          pack<Mode>,
          mask_tail_gradient<Mode>,
          mask_output_gradient<Mode>,
          norm_gradient<Mode>,
          norm_sums<Mode>,
          mix_gradient<Mode>,
          hidden_gradient<Mode>,
          depthwise_sums<Mode>,
          block_gradient<Mode>,
          input_weight_gradient<Mode>,
          input_gradient<Mode>,
          encode_gradient<Mode>,
          decode_gradient<Mode>,
          mel_gradient<Mode>,
          weight_gradient<Mode>,
          overlap_add<Mode>,
          cosines,
          cosines_gradient<Mode>,
          expand,
          expand_gradient,
          combine,
          sum_tiles};
}

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {METATASNET_STRING(METATASNET_ISA), kPanel, passes<Float32>(), passes<BFloat16>()};

}  // namespace metatasnet::METATASNET_ISA
