#pragma once

#include <map>
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace metatasnet {

// The compiled instruction sets that this machine can execute, best first; "generic" is always among them.
std::vector<std::string> usable_isas();

// The compiled instruction sets that are not usable here, each with a sentence that says why.
std::map<std::string, std::string> unusable_isas();

// The kernels of the named instruction set, or of the best one for an empty name. Throws std::invalid_argument for a
// name that is not usable here.
const Kernels& kernels_for(const std::string& isa);

}  // namespace metatasnet
