#pragma once

namespace metatasnet {

// Return null if this process may use the tile registers of AMX, else one sentence that says why not. Linux enlarges a
// process's saved state only on request (arch_prctl ARCH_REQ_XCOMP_PERM); the request is made once per process.
const char* tiles_refused();

}  // namespace metatasnet
