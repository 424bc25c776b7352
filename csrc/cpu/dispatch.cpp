// Chooses an instruction set. Compiled without ISA flags: it has to run everywhere.
#include "cpu/dispatch.h"

#include <initializer_list>
#include <stdexcept>
#include <utility>

#include "cpu/cpu_features.h"
#include "cpu/tile_permission.h"

namespace metatasnet {

#if METATASNET_HAS_AMX_BF16
namespace amx_bf16 {
extern const Kernels kernels;
}
#endif
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

struct Candidate {
  const Kernels* kernels;
  std::string reason;  // why it is not usable here; empty if it is usable
};

#if METATASNET_HAS_AMX_BF16 || METATASNET_HAS_AVX512_BF16 || METATASNET_HAS_AVX512 || METATASNET_HAS_AVX2
// Names the features that an instruction set needs and this processor lacks.
std::string lacking(std::initializer_list<std::pair<bool, const char*>> needs) {
  std::string names;
  for (const auto& [there, name] : needs) {
    if (!there) names += (names.empty() ? "" : ", ") + std::string(name);
  }
  return names.empty() ? names : "the processor or the operating system lacks " + names + ".";
}
#endif

// Everything compiled in, best first.
std::vector<Candidate> candidates() {
  std::vector<Candidate> found;
#if METATASNET_HAS_AMX_BF16 || METATASNET_HAS_AVX512_BF16 || METATASNET_HAS_AVX512 || METATASNET_HAS_AVX2
  const CpuFeatures& f = cpu_features();
  const bool avx2 = f.avx2 && f.fma && f.f16c;
  const bool avx512 = avx2 && f.avx512f && f.avx512bw && f.avx512dq && f.avx512vl;
#if METATASNET_HAS_AMX_BF16
  std::string reason = lacking(
      {{avx512, "AVX-512"}, {f.avx512_bf16, "AVX512-BF16"}, {f.amx_tile, "AMX-TILE"}, {f.amx_bf16, "AMX-BF16"}});
  if (reason.empty() && tiles_refused()) reason = tiles_refused();
  found.push_back({&amx_bf16::kernels, reason});
#endif
#if METATASNET_HAS_AVX512_BF16
  found.push_back({&avx512_bf16::kernels, lacking({{avx512, "AVX-512"}, {f.avx512_bf16, "AVX512-BF16"}})});
#endif
#if METATASNET_HAS_AVX512
  found.push_back({&avx512::kernels, lacking({{avx512, "AVX-512"}})});
#endif
#if METATASNET_HAS_AVX2
  found.push_back({&avx2::kernels, lacking({{avx2, "AVX2 with FMA and F16C"}})});
#endif
#endif
  found.push_back({&generic::kernels, ""});
  return found;
}

}  // namespace

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (const Candidate& c : candidates()) {
    if (c.reason.empty()) names.emplace_back(c.kernels->name);
  }
  return names;
}

std::map<std::string, std::string> unusable_isas() {
  std::map<std::string, std::string> reasons;
  for (const Candidate& c : candidates()) {
    if (!c.reason.empty()) reasons[c.kernels->name] = c.reason;
  }
  return reasons;
}

const Kernels& kernels_for(const std::string& isa) {
  std::string known;
  for (const Candidate& c : candidates()) {
    if (!c.reason.empty()) continue;
    if (isa.empty() || isa == c.kernels->name) return *c.kernels;
    known += (known.empty() ? "" : ", ") + std::string(c.kernels->name);
  }
  throw std::invalid_argument("The instruction set '" + isa + "' is not usable here; choose one of " + known + ".");
}

}  // namespace metatasnet
