// Source: Linux Documentation/arch/x86/xstate.rst.
#include "cpu/tile_permission.h"

#if defined(__linux__) && defined(__x86_64__)
#include <cerrno>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace metatasnet {
namespace {

const char* ask() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr int request = 0x1023;  // ARCH_REQ_XCOMP_PERM, missing in older headers
  constexpr int tile_data = 18;    // XFEATURE_XTILEDATA
  if (syscall(SYS_arch_prctl, request, tile_data) == 0) return nullptr;
  if (errno == ENOSPC) return "a thread's alternate signal stack is too small to save AMX tiles.";
  if (errno == EINVAL || errno == EOPNOTSUPP) return "this Linux kernel does not know AMX tiles.";
  return "the Linux kernel refuses AMX tiles to this process.";
#else
  return "permission for AMX tiles is only known how to ask for on Linux.";
#endif
}

}  // namespace

const char* tiles_refused() {
  static const char* const reason = ask();
  return reason;
}

}  // namespace metatasnet
