#include <string>

#include "bindings/bindings.h"

namespace metatasnet {
namespace {

std::string compiler() {
#if defined(__clang__)
  return __VERSION__;  // begins with the name: "Clang 18.1.3 ..."
#elif defined(__GNUC__)
  return std::string("GCC ") + __VERSION__;
#elif defined(_MSC_FULL_VER)
  return "MSVC " + std::to_string(_MSC_FULL_VER);
#else
  return "unknown";
#endif
}

pybind11::list compiled_isas() {
  pybind11::list names;
  std::string rest = METATASNET_ISAS;
  while (!rest.empty()) {
    const std::size_t comma = rest.find(',');
    names.append(rest.substr(0, comma));
    rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
  }
  return names;
}

}  // namespace

void bind_build_info(pybind11::module_& module) {
  module.def(
      "build_info",
      [] {
        pybind11::dict info;
        info["version"] = METATASNET_VERSION;
        info["compiler"] = compiler();
        info["isas"] = compiled_isas();
        return info;
      },
      "version: of the package it was built for; compiler; isas: instruction sets the CPU kernels were compiled for.");
}

}  // namespace metatasnet
