// Chooses an instruction set. Compiled without ISA flags: it has to run everywhere.
#include "cpu/dispatch.h"

#include <stdexcept>

#include "cpu/cpu_features.h"

namespace metatasnet {

#if METATASNET_HAS_AVX512_BF16
namespace avx512_bf16 {
extern const Kernels kernels;
}
#endif
#if METATASNET_HAS_AVX512
namespace avx512 {
extern const Kernels kernels;
}
#endif
#if METATASNET_HAS_AVX2
namespace avx2 {
extern const Kernels kernels;
}
#endif
namespace generic {
extern const Kernels kernels;
}

namespace {

std::vector<const Kernels*> usable() {
  std::vector<const Kernels*> tables;
#if METATASNET_HAS_AVX512_BF16 || METATASNET_HAS_AVX512 || METATASNET_HAS_AVX2
  const CpuFeatures& f = cpu_features();
  const bool avx2 = f.avx2 && f.fma && f.f16c;
  const bool avx512 = avx2 && f.avx512f && f.avx512bw && f.avx512dq && f.avx512vl;
#if METATASNET_HAS_AVX512_BF16
  if (avx512 && f.avx512_bf16) tables.push_back(&avx512_bf16::kernels);
#endif
#if METATASNET_HAS_AVX512
  if (avx512) tables.push_back(&avx512::kernels);
#endif
#if METATASNET_HAS_AVX2
  if (avx2) tables.push_back(&avx2::kernels);
#endif
#endif
  tables.push_back(&generic::kernels);
  return tables;
}

}  // namespace

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (const Kernels* table : usable()) names.emplace_back(table->name);
  return names;
}

const Kernels& kernels_for(const std::string& isa) {
  std::string known;
  for (const Kernels* table : usable()) {
    if (isa.empty() || isa == table->name) return *table;
    known += (known.empty() ? "" : ", ") + std::string(table->name);
  }
  throw std::invalid_argument("The instruction set '" + isa + "' is not usable here; choose one of " + known + ".");
}

}  // namespace metatasnet
