// The passes of this instruction set, as the dispatcher takes them.
#include "cpu/isa/gemm.h"
#include "cpu/isa/modes.h"

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
          decode<Mode>};
}

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {METATASNET_STRING(METATASNET_ISA), kPanel, passes<Float32>(), passes<BFloat16>()};

}  // namespace metatasnet::METATASNET_ISA
