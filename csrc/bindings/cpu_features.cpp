#include "cpu/cpu_features.h"

#include "bindings/bindings.h"

namespace metatasnet {

void bind_cpu_features(pybind11::module_& module) {
  module.def(
      "cpu_features",
      [] {
        const CpuFeatures& f = cpu_features();
        pybind11::dict d;
        d["avx2"] = f.avx2;
        d["fma"] = f.fma;
        d["f16c"] = f.f16c;
        d["avx_vnni"] = f.avx_vnni;
        d["avx512f"] = f.avx512f;
        d["avx512bw"] = f.avx512bw;
        d["avx512dq"] = f.avx512dq;
        d["avx512vl"] = f.avx512vl;
        d["avx512_vnni"] = f.avx512_vnni;
        d["avx512_bf16"] = f.avx512_bf16;
        d["avx512_fp16"] = f.avx512_fp16;
        d["amx_tile"] = f.amx_tile;
        d["amx_bf16"] = f.amx_bf16;
        d["amx_int8"] = f.amx_int8;
        d["neon"] = f.neon;
        d["arm_dotprod"] = f.arm_dotprod;
        d["arm_i8mm"] = f.arm_i8mm;
        d["arm_bf16"] = f.arm_bf16;
        return d;
      },
      "Instruction sets that this processor executes and this operating system saves (CPUID and XCR0), by name.");
}

}  // namespace metatasnet
