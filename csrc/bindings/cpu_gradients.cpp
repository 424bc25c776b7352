// The backward passes of class CpuStage.
#include "bindings/cpu_stage.h"

namespace py = pybind11;

namespace metatasnet {
namespace {

using Gradients = std::map<std::string, py::object>;

// Takes writeable arrays without converting them: the gradients would go into the converted copy.
Arrays<float> writeable(const Gradients& gradients) {
  Arrays<float> arrays;
  for (const auto& [name, object] : gradients) {
    if (!py::isinstance<FloatArray>(object)) {
      throw py::value_error("The gradient of '" + name + "' must be a contiguous float32 array.");
    }
    FloatArray array = py::reinterpret_borrow<FloatArray>(object);
    arrays[name] = {array.mutable_data(), {array.shape(), array.shape() + array.ndim()}};
  }
  return arrays;
}

float* floats(py::handle tensor, const char* name, const std::vector<std::int64_t>& shape) {
  return reinterpret_cast<float*>(dense_tensor(tensor, name, shape, "float32").data);
}

void encode_gradient(const HeldStage& held, py::handle signal_, py::handle kept_, py::handle gradient_,
                     py::handle mel_gradient_, py::handle signal_gradient_, py::handle bank, py::handle bottleneck_1,
                     py::handle bottleneck_2, int threads) {
  const Stage& stage = held.stage;
  const StageSizes& s = stage.sizes();
  const Tensor signal = dense_tensor(signal_, "signal", {-1, -1}, "float32");
  EncodeCall call{};
  call.n = signal.shape[0];
  call.samples = signal.shape[1];
  const std::int64_t frames = call.samples / s.W;
  call.signal = reinterpret_cast<const float*>(signal.data);
  const Tensor gradient = frames_tensor(gradient_, "gradient", {call.n, frames, s.N});
  call.gradient = frames_of(gradient);
  call.gradient_item = gradient.strides[0];
  call.kept = kept_bytes(kept_, stage.kept_encoder(call.n, frames));
  const Share mel = share_of(mel_gradient_, "mel_gradient", call.n, stage);
  call.mel_frames = mel.frames;
  call.mel_gradient = mel.values;
  if (!signal_gradient_.is_none())
    call.signal_gradient = floats(signal_gradient_, "signal_gradient", {call.n, call.samples});
  const std::int64_t n = padded(s.N), width = padded(s.bank());
  call.gradients = {floats(bank, "bank", {width, padded(s.longest())}), floats(bottleneck_1, "bottleneck_1", {n, width}),
                    floats(bottleneck_2, "bottleneck_2", {n, n})};
  checked_threads(threads);
  const py::gil_scoped_release release;
  stage.encode_gradient(call, threads);
}

void mask_gradient(const HeldStage& held, py::handle latent_, py::handle input_, py::handle partial_, py::handle kept_,
                   py::handle gradient_, py::handle latent_gradient_, py::handle own_gradient_,
                   py::handle partial_gradient_, const Gradients& gradients_, int threads) {
  const Stage& stage = held.stage;
  const StageSizes& s = stage.sizes();
  const Tensor latent = frames_tensor(latent_, "latent", {-1, -1, s.N});
  MaskCall call{};
  const std::int64_t n = call.n = latent.shape[0], frames = call.frames = latent.shape[1];
  call.latent = {frames_of(latent), latent.strides[0], 0};
  call.input = input_.is_none() ? call.latent
                                : latents_of(frames_tensor(input_, "input", {n, s.instruments, frames, s.N}));
  if (s.partial) call.partial = latents_of(frames_tensor(partial_, "partial", {n, s.instruments, frames, s.partial}));
  call.kept = kept_bytes(kept_, stage.kept_mask(n, frames));
  call.gradient = latents_of(frames_tensor(gradient_, "gradient", {n, s.instruments, frames, s.N}));
  call.latent_gradient = floats(latent_gradient_, "latent_gradient", {n, frames, stage.latent_ld()});
  if (!input_.is_none()) {
    call.own_gradient = dense_tensor(own_gradient_, "own_gradient", {n, s.instruments, frames, stage.latent_ld()},
                                     storage_type(stage))
                            .data;
  }
  if (s.partial) {
    call.partial_gradient = dense_tensor(partial_gradient_, "partial_gradient",
                                         {n, s.instruments, frames, padded(s.partial)}, storage_type(stage))
                                .data;
  }
  const MaskTensors<float> gradients = mask_tensors(s, writeable(gradients_));
  checked_threads(threads);
  const py::gil_scoped_release release;
  stage.mask_gradient(call, gradients, threads);
}

void decode_gradient(const HeldStage& held, py::handle latent_, py::handle kept_, py::handle gradient_,
                     py::handle latent_gradient_, py::handle bottleneck, py::handle filters, int threads) {
  const Stage& stage = held.stage;
  const StageSizes& s = stage.sizes();
  const Tensor latent = frames_tensor(latent_, "latent", {-1, -1, s.N});
  DecodeCall call{};
  call.n = latent.shape[0];
  call.frames = latent.shape[1];
  call.latent = frames_of(latent);
  call.latent_item = latent.strides[0];
  call.gradient = floats(gradient_, "gradient", {call.n, call.frames * s.W});
  call.kept = kept_bytes(kept_, stage.kept_decoder(call.n, call.frames));
  call.latent_gradient =
      dense_tensor(latent_gradient_, "latent_gradient", {call.n, call.frames, stage.latent_ld()}, storage_type(stage))
          .data;
  call.gradients = {floats(bottleneck, "bottleneck", {padded(s.N), padded(s.wide())}),
                    floats(filters, "filters", {padded(s.wide()), padded(s.longest())})};
  checked_threads(threads);
  const py::gil_scoped_release release;
  stage.decode_gradient(call, threads);
}

std::int64_t kept_size(const HeldStage& held, const std::string& job, std::int64_t n, std::int64_t frames) {
  if (job == "encode") return held.stage.kept_encoder(n, frames);
  if (job == "mask") return held.stage.kept_mask(n, frames);
  if (job == "decode") return held.stage.kept_decoder(n, frames);
  throw py::value_error("The jobs are encode, mask and decode, not '" + job + "'.");
}

}  // namespace

void bind_cpu_gradients(py::class_<HeldStage>& stage) {
  stage
      .def("kept_bytes", &kept_size, py::arg("job"), py::arg("n"), py::arg("frames"),
           "Bytes that a job keeps for its backward pass.")
      .def("encode_gradient", &encode_gradient, py::arg("signal"), py::arg("kept"), py::arg("gradient"),
           py::arg("mel_gradient"), py::arg("signal_gradient"), py::arg("bank"), py::arg("bottleneck_1"),
           py::arg("bottleneck_2"), py::arg("threads"),
           "gradient (n, frames, N) of the latent; adds to mel_gradient (n, STFT frames, latent_ld) unless it is None, writes "
           "signal_gradient (n, samples) unless it is None, and the gradients of weights, float32, whose rows and "
           "columns are rounded up to multiples of 32.")
      .def("mask_gradient", &mask_gradient, py::arg("latent"), py::arg("input"), py::arg("partial"), py::arg("kept"),
           py::arg("gradient"), py::arg("latent_gradient"), py::arg("own_gradient"), py::arg("partial_gradient"),
           py::arg("gradients"), py::arg("threads"),
           "gradient (n, instruments, frames, N) of the masked latent; writes latent_gradient (n, frames, latent_ld) "
           "float32, own_gradient (n, instruments, frames, latent_ld) where there is an input, partial_gradient "
           "(n, instruments, frames, N / 2 rounded up) where there is a partial latent, and the gradients of the masking "
           "network's weights by name.")
      .def("decode_gradient", &decode_gradient, py::arg("latent"), py::arg("kept"), py::arg("gradient"),
           py::arg("latent_gradient"), py::arg("bottleneck"), py::arg("filters"), py::arg("threads"),
           "gradient (n, frames * W) of the signal; writes latent_gradient (n, frames, latent_ld) and the gradients of "
           "weights, padded likewise.");
}

}  // namespace metatasnet
