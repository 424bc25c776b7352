// The backend `cpu` for Python: class CpuStage. Tensors are read through torch's Python attributes, checked, never
// kept.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "cpu/dispatch.h"
#include "cpu/stage.h"

namespace py = pybind11;

namespace metatasnet {
namespace {

std::string text(const std::vector<std::int64_t>& values) {
  std::string s = "(";
  for (std::size_t i = 0; i < values.size(); ++i) s += (i ? ", " : "") + std::to_string(values[i]);
  return s + ")";
}

// A torch tensor on the CPU.
struct Tensor {
  std::string name;
  void* data;
  std::vector<std::int64_t> shape, strides;
  bool is_bfloat16;

  Tensor(py::handle tensor, std::string called) : name(std::move(called)) {
    const std::string device = py::str(tensor.attr("device").attr("type"));
    if (device != "cpu") throw py::value_error(name + " must be on the cpu, got " + device + ".");
    const std::string dtype = py::str(tensor.attr("dtype"));
    if (dtype != "torch.float32" && dtype != "torch.bfloat16") {
      throw py::value_error(name + " must be float32 or bfloat16, got " + dtype + ".");
    }
    is_bfloat16 = dtype == "torch.bfloat16";
    shape = tensor.attr("shape").cast<std::vector<std::int64_t>>();
    strides = tensor.attr("stride")().cast<std::vector<std::int64_t>>();
    data = reinterpret_cast<void*>(tensor.attr("data_ptr")().cast<std::uintptr_t>());
  }

  bool empty() const { return std::find(shape.begin(), shape.end(), 0) != shape.end(); }  // strides then mean nothing

  // -1 in `expected` stands for any size.
  void require_shape(const std::vector<std::int64_t>& expected) const {
    bool same = shape.size() == expected.size();
    for (std::size_t i = 0; same && i < shape.size(); ++i) same = expected[i] < 0 || shape[i] == expected[i];
    if (!same) throw py::value_error(name + " must have shape " + text(expected) + ", got " + text(shape) + ".");
  }

  void require_dtype(bool bfloat16) const {
    if (is_bfloat16 != bfloat16) throw py::value_error(name + " must be " + (bfloat16 ? "bfloat16." : "float32."));
  }

  void require_contiguous() const {
    std::int64_t stride = 1;
    for (std::size_t i = shape.size(); i-- > 0; stride *= shape[i]) {
      if (!empty() && shape[i] > 1 && strides[i] != stride)
        throw py::value_error(name + " must be contiguous, got strides " + text(strides) + ".");
    }
  }

  // The last two axes as frames by channels.
  Source frames() const {
    if (!empty() && shape.back() > 1 && strides.back() != 1) {
      throw py::value_error(name + " must have contiguous channels, got strides " + text(strides) + ".");
    }
    return {data, strides[strides.size() - 2], static_cast<int>(shape.back()), is_bfloat16};
  }
};

int checked_threads(int threads) {
  if (threads < 1) throw py::value_error("threads must be at least 1, got " + std::to_string(threads) + ".");
  return threads;
}

using FloatArray = py::array_t<float, py::array::c_style>;

Stage make_stage(const std::string& isa, bool bfloat16, const py::dict& sizes,
                 const std::map<std::string, FloatArray>& weights) {
  StageSizes s;
  s.instruments = sizes["instruments"].cast<int>();
  s.N = sizes["N"].cast<int>();
  s.W = sizes["W"].cast<int>();
  s.B = sizes["B"].cast<int>();
  s.H = sizes["H"].cast<int>();
  s.partial = sizes["partial"].cast<int>();
  s.kernel_sizes = sizes["kernel_sizes"].cast<std::vector<int>>();
  s.widths = sizes["widths"].cast<std::vector<int>>();
  s.dilations = sizes["dilations"].cast<std::vector<int>>();
  check(s);
  Arrays arrays;
  for (const auto& [name, array] : weights)
    arrays[name] = {array.data(), {array.shape(), array.shape() + array.ndim()}};
  const Kernels& kernels = kernels_for(isa);
  const py::gil_scoped_release release;
  return Stage(kernels, bfloat16, s, arrays);
}

void encode(const Stage& stage, py::handle signal_, py::handle mel_, py::handle latent_, int threads) {
  const Tensor signal(signal_, "signal"), mel(mel_, "mel"), latent(latent_, "latent");
  signal.require_shape({-1, -1});
  signal.require_dtype(false);
  signal.require_contiguous();
  const std::int64_t n = signal.shape[0], samples = signal.shape[1];
  mel.require_shape({n, -1, stage.latent_ld()});
  mel.require_dtype(false);
  mel.require_contiguous();
  if (mel.shape[1] < 1) throw py::value_error("mel must have at least one frame.");
  latent.require_shape({n, samples / stage.sizes().W, stage.latent_ld()});
  latent.require_dtype(stage.stores_bfloat16());
  latent.require_contiguous();
  checked_threads(threads);
  const py::gil_scoped_release release;
  stage.encode(static_cast<const float*>(signal.data), n, samples, samples, static_cast<const float*>(mel.data),
               mel.shape[1], latent.data, threads);
}

py::dict mask(const Stage& stage, py::handle latent_, py::handle input_, py::handle partial_, py::handle masked_,
              int threads) {
  const StageSizes& s = stage.sizes();
  const Tensor latent(latent_, "latent"), masked(masked_, "masked");
  latent.require_shape({-1, -1, s.N});
  const std::int64_t n = latent.shape[0], frames = latent.shape[1];
  const Latents shared{latent.frames(), latent.strides[0], 0};
  const auto per_instrument = [&](py::handle tensor_, const char* name, int channels) -> Latents {
    const Tensor tensor(tensor_, name);
    tensor.require_shape({n, s.instruments, frames, channels});
    return {tensor.frames(), tensor.strides[0], tensor.strides[1]};
  };
  if (partial_.is_none() != (s.partial == 0)) {
    throw py::value_error(s.partial ? "This stage needs a partial latent." : "This stage takes no partial latent.");
  }
  const Latents input = input_.is_none() ? shared : per_instrument(input_, "input", s.N);
  const Latents partial = s.partial ? per_instrument(partial_, "partial", s.partial) : Latents{};
  masked.require_shape({n, s.instruments, frames, stage.latent_ld()});
  masked.require_dtype(stage.stores_bfloat16());
  masked.require_contiguous();
  checked_threads(threads);
  MaskSeconds seconds;
  {
    const py::gil_scoped_release release;
    seconds = stage.mask(n, frames, shared, input, partial, masked.data, threads);
  }
  py::dict by_pass;
  by_pass["source_moments"] = seconds.source_moments;
  by_pass["input_conv"] = seconds.input_conv;
  by_pass["block_input"] = seconds.block_input;
  by_pass["depthwise"] = seconds.depthwise;
  by_pass["skip_output"] = seconds.skip_output;
  by_pass["mask_output"] = seconds.mask_output;
  by_pass["mask_product"] = seconds.mask_product;
  by_pass["fold"] = seconds.fold;
  return by_pass;
}

void decode(const Stage& stage, py::handle latent_, py::handle signal_, int threads) {
  const Tensor latent(latent_, "latent"), signal(signal_, "signal");
  latent.require_shape({-1, -1, stage.sizes().N});
  const std::int64_t n = latent.shape[0], frames = latent.shape[1];
  signal.require_shape({n, frames * stage.sizes().W});
  signal.require_dtype(false);
  signal.require_contiguous();
  checked_threads(threads);
  const Source source = latent.frames();
  const py::gil_scoped_release release;
  stage.decode(n, frames, source, latent.strides[0], static_cast<float*>(signal.data), threads);
}

}  // namespace

void bind_cpu(py::module_& module) {
  module.def("cpu_isas", usable_isas, "Instruction sets that the cpu backend can use on this machine, best first.");
  module.def("unusable_cpu_isas", unusable_isas,
             "Why the cpu backend cannot use the other instruction sets that were compiled, by name.");
  py::class_<Stage>(module, "CpuStage", "One stage's weights packed for an instruction set, and its jobs.")
      .def(py::init(&make_stage), py::arg("isa"), py::arg("bfloat16"), py::arg("sizes"), py::arg("weights"),
           "isa: one of cpu_isas(), or '' for the best. weights: float32 arrays by name.")
      .def_property_readonly("isa", &Stage::isa)
      .def_property_readonly("instruments", [](const Stage& stage) { return stage.sizes().instruments; })
      .def_property_readonly("latent_ld", &Stage::latent_ld, "Channels of a latent's storage: N rounded up.")
      .def(
          "encode", &encode, py::arg("signal"), py::arg("mel"), py::arg("latent"), py::arg("threads"),
          "signal (n, samples) float32, mel (n, STFT frames, latent_ld) float32; writes latent (n, frames, latent_ld).")
      .def("mask", &mask, py::arg("latent"), py::arg("input"), py::arg("partial"), py::arg("masked"),
           py::arg("threads"),
           "latent (n, frames, N); input (n, instruments, frames, N): what the network reads instead of it, or None; "
           "partial (n, instruments, frames, N / 2) or None; writes masked (n, instruments, frames, latent_ld). "
           "Returns the seconds of each pass, summed over the threads.")
      .def("decode", &decode, py::arg("latent"), py::arg("signal"), py::arg("threads"),
           "latent (n, frames, N); writes signal (n, frames * W) float32.");
}

}  // namespace metatasnet
