// The backend `cpu` for Python: class CpuStage. Tensors are read through torch's Python attributes, checked, never
// kept.
#include "bindings/cpu_stage.h"

#include "bindings/bindings.h"
#include "cpu/dispatch.h"

namespace py = pybind11;

namespace metatasnet {
namespace {

struct HeldBlock {
  Block block;
  std::size_t bytes;
};

std::unique_ptr<HeldBlock> take(const HeldStage& held, std::size_t bytes) {
  return std::unique_ptr<HeldBlock>(new HeldBlock{held.stage.pool().take(bytes), bytes});
}

std::unique_ptr<HeldStage> make_stage(const std::string& isa, bool bfloat16, const py::dict& sizes,
                                      std::map<std::string, FloatArray> weights, bool training,
                                      std::shared_ptr<MemoryPool> pool, int threads) {
  StageSizes s;
  s.instruments = sizes["instruments"].cast<int>();
  s.softmax = sizes["softmax"].cast<int>();
  s.N = sizes["N"].cast<int>();
  s.W = sizes["W"].cast<int>();
  s.B = sizes["B"].cast<int>();
  s.H = sizes["H"].cast<int>();
  s.partial = sizes["partial"].cast<int>();
  s.kernel_sizes = sizes["kernel_sizes"].cast<std::vector<int>>();
  s.widths = sizes["widths"].cast<std::vector<int>>();
  s.dilations = sizes["dilations"].cast<std::vector<int>>();
  check(s);
  checked_threads(threads);
  Arrays<const float> arrays;
  for (const auto& [name, array] : weights)
    arrays[name] = {array.data(), {array.shape(), array.shape() + array.ndim()}};
  const Kernels& kernels = kernels_for(isa);
  std::unique_ptr<HeldStage> held;
  {
    const py::gil_scoped_release release;
    if (!pool) pool = std::make_shared<MemoryPool>();
    held.reset(new HeldStage{{}, Stage(kernels, bfloat16, s, arrays, training, pool, threads)});
  }
  if (training) held->weights = std::move(weights);
  return held;
}

void encode(const HeldStage& held, py::handle signal_, py::handle mel_, py::handle latent_, py::handle kept_,
            int threads) {
  const Stage& stage = held.stage;
  const Tensor signal = dense_tensor(signal_, "signal", {-1, -1}, "float32");
  const std::int64_t n = signal.shape[0], samples = signal.shape[1], frames = samples / stage.sizes().W;
  const Share mel = share_of(mel_, "mel", n, stage);
  const Tensor latent = dense_tensor(latent_, "latent", {n, frames, stage.latent_ld()}, storage_type(stage));
  void* kept = kept_bytes(kept_, stage.kept_encoder(n, frames));
  checked_threads(threads);
  const py::gil_scoped_release release;
  stage.encode(reinterpret_cast<const float*>(signal.data), n, samples, samples, mel.values, mel.frames, latent.data,
               kept, threads);
}

py::dict mask(const HeldStage& held, py::handle latent_, py::handle input_, py::handle partial_, py::handle masked_,
              py::handle kept_, int threads) {
  const Stage& stage = held.stage;
  const StageSizes& s = stage.sizes();
  const Tensor latent = frames_tensor(latent_, "latent", {-1, -1, s.N});
  const std::int64_t n = latent.shape[0], frames = latent.shape[1];
  const Latents shared{frames_of(latent), latent.strides[0], 0};
  if (partial_.is_none() != (s.partial == 0)) {
    throw py::value_error(s.partial ? "This stage needs a partial latent." : "This stage takes no partial latent.");
  }
  const Latents input =
      input_.is_none() ? shared : latents_of(frames_tensor(input_, "input", {n, s.instruments, frames, s.N}));
  const Latents partial =
      s.partial ? latents_of(frames_tensor(partial_, "partial", {n, s.instruments, frames, s.partial})) : Latents{};
  const Tensor masked =
      dense_tensor(masked_, "masked", {n, s.instruments, frames, stage.latent_ld()}, storage_type(stage));
  void* kept = kept_bytes(kept_, stage.kept_mask(n, frames));
  checked_threads(threads);
  MaskSeconds seconds;
  {
    const py::gil_scoped_release release;
    seconds = stage.mask(n, frames, shared, input, partial, masked.data, kept, threads);
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

void decode(const HeldStage& held, py::handle latent_, py::handle signal_, py::handle kept_, int threads) {
  const Stage& stage = held.stage;
  const Tensor latent = frames_tensor(latent_, "latent", {-1, -1, stage.sizes().N});
  const std::int64_t n = latent.shape[0], frames = latent.shape[1];
  const Tensor signal = dense_tensor(signal_, "signal", {n, frames * stage.sizes().W}, "float32");
  void* kept = kept_bytes(kept_, stage.kept_decoder(n, frames));
  checked_threads(threads);
  const Source source = frames_of(latent);
  const py::gil_scoped_release release;
  stage.decode(n, frames, source, latent.strides[0], reinterpret_cast<float*>(signal.data), kept, threads);
}

}  // namespace

void bind_cpu(py::module_& module) {
  module.def("cpu_isas", usable_isas, "Instruction sets that the cpu backend can use on this machine, best first.");
  module.def("unusable_cpu_isas", unusable_isas,
             "Why the cpu backend cannot use the other instruction sets that were compiled, by name.");
  py::class_<MemoryPool, std::shared_ptr<MemoryPool>>(
      module, "CpuPool", "Memory that stages use one after the other; it is never more than was once in use.")
      .def(py::init<>())
      .def("trim", &MemoryPool::trim, "Give back what is not in use.");
  py::class_<HeldBlock>(module, "CpuBlock", py::buffer_protocol(), "Bytes of a pool, given back when it is deleted.")
      .def_buffer([](HeldBlock& held) {
        return py::buffer_info(held.block.as<std::uint8_t>(), static_cast<py::ssize_t>(held.bytes));
      });
  py::class_<HeldStage> stage(module, "CpuStage", "One stage's weights packed for an instruction set, and its jobs.");
  stage
      .def(py::init(&make_stage), py::arg("isa"), py::arg("bfloat16"), py::arg("sizes"), py::arg("weights"),
           py::arg("training") = false, py::arg("pool") = nullptr, py::arg("threads") = 1,
           "isa: one of cpu_isas(), or '' for the best. weights: float32 arrays by name; kept where `training` says that "
           "backward passes follow. pool: a CpuPool, or None for one of its own.")
      .def("take", &take, py::arg("bytes"), "Memory of the pool as a CpuBlock.")
      .def_property_readonly("isa", [](const HeldStage& held) { return held.stage.isa(); })
      .def_property_readonly("storage", [](const HeldStage& held) { return storage_type(held.stage); })
      .def_property_readonly("instruments", [](const HeldStage& held) { return held.stage.sizes().instruments; })
      .def_property_readonly(
          "latent_ld", [](const HeldStage& held) { return held.stage.latent_ld(); },
          "Channels of a latent's storage: N rounded up.")
      .def("encode", &encode, py::arg("signal"), py::arg("mel"), py::arg("latent"), py::arg("kept"), py::arg("threads"),
           "signal (n, samples) float32, mel (n, STFT frames, latent_ld) float32 or None; writes latent (n, frames, latent_ld) "
           "and, unless it is None, kept (kept_bytes('encode', n, frames),) for the backward pass.")
      .def("mask", &mask, py::arg("latent"), py::arg("input"), py::arg("partial"), py::arg("masked"), py::arg("kept"),
           py::arg("threads"),
           "latent (n, frames, N); input (n, instruments, frames, N): what the network reads instead of it, or None; "
           "partial (n, instruments, frames, N / 2) or None; writes masked (n, instruments, frames, latent_ld) and, "
           "unless it is None, kept (kept_bytes('mask', n, frames),). "
           "Returns the seconds of each pass, summed over the threads.")
      .def("decode", &decode, py::arg("latent"), py::arg("signal"), py::arg("kept"), py::arg("threads"),
           "latent (n, frames, N); writes signal (n, frames * W) float32 and, unless it is None, kept "
           "(kept_bytes('decode', n, frames),).");
  bind_cpu_gradients(stage);
}

}  // namespace metatasnet
