// The losses of the backend `cpu`.
#include "bindings/bindings.h"
#include "bindings/cpu_stage.h"
#include "cpu/cosines.h"
#include "cpu/dispatch.h"

namespace py = pybind11;

namespace metatasnet {
namespace {

CosineCall call_of(const Tensor& latents, py::handle mask_, int carried, int threads) {
  CosineCall call{};
  call.items = latents.shape[0];
  call.frames = latents.shape[2];
  call.instruments = static_cast<int>(latents.shape[1]);
  call.carried = carried;
  call.latents = latents_of(latents);
  call.mask = reinterpret_cast<const float*>(
      dense_tensor(mask_, "mask", {call.items, call.instruments}, "float32").data);
  if (latents.empty()) throw py::value_error("latents must not be empty.");
  if (call.instruments > kMostInstruments) throw py::value_error("latents must be of 1 to 32 instruments.");
  if (carried < 0 || carried > 1) throw py::value_error("carried must be 0 or 1.");
  checked_threads(threads);
  return call;
}

py::tuple sums(const std::string& isa, py::handle latents_, py::handle mask, int carried, int threads) {
  const CosineCall call = call_of(frames_tensor(latents_, "latents", {-1, -1, -1, -1}), mask, carried, threads);
  const Kernels& kernels = kernels_for(isa);
  CosineSums found{};
  {
    const py::gil_scoped_release release;
    found = cosine_sums(kernels, call, threads);
  }
  return py::make_tuple(found.pairs, found.neighbours);
}

void gradient(const std::string& isa, py::handle latents_, py::handle mask, int carried, double on_pairs,
              double on_neighbours, py::handle gradient_, int threads) {
  const Tensor latents = frames_tensor(latents_, "latents", {-1, -1, -1, -1});
  const CosineCall call = call_of(latents, mask, carried, threads);
  const Tensor result = dense_tensor(
      gradient_, "gradient", {call.items, call.instruments, call.frames, padded(call.latents.source.channels)},
      latents.type);
  const Kernels& kernels = kernels_for(isa);
  const py::gil_scoped_release release;
  cosine_gradient(kernels, call, {on_pairs, on_neighbours}, latents.type == "bfloat16", result.data, threads);
}

}  // namespace

void bind_cpu_losses(py::module_& module) {
  module.def("cpu_cosine_sums", &sums, py::arg("isa"), py::arg("latents"), py::arg("mask"), py::arg("carried"),
             py::arg("threads"),
             "Of latents (items, instruments, frames, N), zero where mask (items, instruments) is: the sums of |cosine| over "
             "pairs of instruments, and of the cosines between neighbouring items.");
  module.def("cpu_cosine_gradient", &gradient, py::arg("isa"), py::arg("latents"), py::arg("mask"), py::arg("carried"),
             py::arg("on_pairs"), py::arg("on_neighbours"), py::arg("gradient"), py::arg("threads"),
             "Writes gradient (items, instruments, frames, N rounded up to 32), in the latents' dtype, of the two sums.");
}

}  // namespace metatasnet
