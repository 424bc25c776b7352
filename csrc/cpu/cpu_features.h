#pragma once

namespace metatasnet {

// Instruction sets that this processor can execute AND this operating system saves on a context switch (CPUID and XCR0).
// A field of another architecture is false. Using AMX on Linux also takes a permission per process
// (arch_prctl ARCH_REQ_XCOMP_PERM), which tiles_refused() asks for.
struct CpuFeatures {
  bool avx2 = false;
  bool fma = false;
  bool f16c = false;
  bool avx_vnni = false;
  bool avx512f = false;
  bool avx512bw = false;
  bool avx512dq = false;
  bool avx512vl = false;
  bool avx512_vnni = false;
  bool avx512_bf16 = false;
  bool avx512_fp16 = false;
  bool amx_tile = false;
  bool amx_bf16 = false;
  bool amx_int8 = false;
  bool neon = false;
  bool arm_dotprod = false;
  bool arm_i8mm = false;
  bool arm_bf16 = false;
};

// Asked once per process.
const CpuFeatures& cpu_features();

}  // namespace metatasnet
