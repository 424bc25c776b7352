// Bit positions: Intel SDM volume 2A, CPUID, and volume 1, section 13.3 (XCR0); Linux arch/arm64 hwcaps.
#include "cpu/cpu_features.h"

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace metatasnet {
namespace {

#if defined(__x86_64__) || defined(_M_X64)

struct Registers {
  std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// All zero if the processor does not know the leaf.
Registers cpuid(std::uint32_t leaf, std::uint32_t subleaf) {
  Registers r;
#if defined(_MSC_VER)
  int highest[4], values[4];
  __cpuid(highest, 0);
  if (leaf > static_cast<std::uint32_t>(highest[0])) return r;
  __cpuidex(values, static_cast<int>(leaf), static_cast<int>(subleaf));
  r.eax = static_cast<std::uint32_t>(values[0]);
  r.ebx = static_cast<std::uint32_t>(values[1]);
  r.ecx = static_cast<std::uint32_t>(values[2]);
  r.edx = static_cast<std::uint32_t>(values[3]);
#else
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
#endif
  return r;
}

// Defined only if CPUID reports OSXSAVE.
std::uint64_t xcr0() {
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  std::uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));  // the intrinsic would need -mxsave
  return (static_cast<std::uint64_t>(high) << 32) | low;
#endif
}

bool bit(std::uint32_t word, int position) { return (word >> position) & 1u; }

CpuFeatures detect() {
  constexpr std::uint64_t avx_state = 0x6;          // XMM and YMM
  constexpr std::uint64_t avx512_state = 0xe6;      // the state of AVX2, then opmask, upper ZMM and ZMM16-31
  constexpr std::uint64_t tile_state = 0x60000;     // TILECFG and TILEDATA
  CpuFeatures f;
  const Registers basic = cpuid(1, 0);
  if (!bit(basic.ecx, 27)) return f;  // OSXSAVE
  const std::uint64_t saved = xcr0();
  const Registers extended = cpuid(7, 0);
  const Registers extended1 = extended.eax >= 1 ? cpuid(7, 1) : Registers{};

  if ((saved & avx_state) == avx_state && bit(basic.ecx, 28)) {
    f.fma = bit(basic.ecx, 12);
    f.f16c = bit(basic.ecx, 29);
    f.avx2 = bit(extended.ebx, 5);
    f.avx_vnni = bit(extended1.eax, 4);
  }
  if ((saved & avx512_state) == avx512_state && bit(extended.ebx, 16)) {
    f.avx512f = true;
    f.avx512dq = bit(extended.ebx, 17);
    f.avx512bw = bit(extended.ebx, 30);
    f.avx512vl = bit(extended.ebx, 31);
    f.avx512_vnni = bit(extended.ecx, 11);
    f.avx512_fp16 = bit(extended.edx, 23);
    f.avx512_bf16 = bit(extended1.eax, 5);
  }
  if ((saved & tile_state) == tile_state && bit(extended.edx, 24)) {
    f.amx_tile = true;
    f.amx_bf16 = bit(extended.edx, 22);
    f.amx_int8 = bit(extended.edx, 25);
  }
  return f;
}

#elif defined(__aarch64__) || defined(_M_ARM64)

CpuFeatures detect() {
  CpuFeatures f;
  f.neon = true;  // part of the base architecture
#if defined(__linux__)
  const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
  f.arm_dotprod = (first & HWCAP_ASIMDDP) != 0;
  f.arm_i8mm = (second & HWCAP2_I8MM) != 0;
  f.arm_bf16 = (second & HWCAP2_BF16) != 0;
#endif
  return f;
}

#else

CpuFeatures detect() { return {}; }

#endif

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

}  // namespace metatasnet
