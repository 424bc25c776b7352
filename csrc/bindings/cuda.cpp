// The backend `cuda` for Python: classes CudaStage, where nvcc was there, and EmulatedCudaStage, the same code on the
// host.
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

#include "bindings/tensor.h"
#include "cuda/interface.h"

namespace py = pybind11;

namespace metatasnet {
namespace {

device::Sizes read_sizes(const py::dict& from) {
  device::Sizes s;
  const std::pair<const char*, int*> numbers[] = {{"instruments", &s.instruments},
                                                  {"softmax", &s.softmax},
                                                  {"N", &s.N},         {"W", &s.W},       {"B", &s.B},
                                                  {"H", &s.H},         {"partial", &s.partial}, {"window", &s.window},
                                                  {"bank", &s.bank},   {"wide", &s.wide}, {"mels", &s.mels},
                                                  {"n_fft", &s.n_fft}, {"hop", &s.hop},     {"turn", &s.turn}};
  for (const auto& [name, to] : numbers) *to = from[name].cast<int>();
  s.biased = from["biased"].cast<bool>();
  s.dilations = from["dilations"].cast<std::vector<int>>();
  s.taps = from["taps"].cast<std::vector<int>>();
  s.inputs = from["inputs"].cast<std::vector<int>>();
  return s;
}

device::Precision read_precision(const std::string& name) {
  if (name == "float32") return device::Precision::float32;
  if (name == "tf32") return device::Precision::tf32;
  if (name == "bfloat16") return device::Precision::bfloat16;
  throw py::value_error("precision must be float32, tf32 or bfloat16, got " + name + ".");
}

device::Products read_products(const std::string& name) {
  if (name == "mma") return device::Products::mma;
  if (name == "wgmma") return device::Products::wgmma;
  throw py::value_error("products must be mma or wgmma, got " + name + ".");
}

device::Type read_type(const Tensor& tensor) {
  if (tensor.type == "float32") return device::Type::float32;
  if (tensor.type == "bfloat16") return device::Type::bfloat16;
  if (tensor.type == "float64") return device::Type::float64;
  tensor.refuse("must be float32, bfloat16 or float64, got " + tensor.type + ".");
}

// A stage, with the device that holds its weights.
class BoundStage {
 public:
  BoundStage(device::MakeStage make, const std::string& type, const std::string& precision, const py::dict& sizes,
             const std::vector<float>& slopes, const std::map<std::string, py::object>& weights,
             const std::string& products) {
    if (slopes.size() < 4) throw py::value_error("slopes must hold at least four numbers.");
    if (weights.empty()) throw py::value_error("There are no weights.");
    std::map<std::string, device::Array> arrays;
    for (const auto& [name, value] : weights) {
      const Tensor tensor(value, name);
      if (arrays.empty()) index_ = tensor.index;
      tensor.require_device(type, index_);
      tensor.require_contiguous();
      arrays[name] = {tensor.data, tensor.shape, read_type(tensor)};
    }
    type_ = type;
    const device::Slopes named{slopes[0], slopes[1], slopes[2], slopes[3], {slopes.begin() + 4, slopes.end()}};
    stage_ = make(read_precision(precision), read_products(products), read_sizes(sizes), named, arrays);
  }

  const device::Stage& stage() const { return *stage_; }
  std::string separate_launches(std::int64_t frames) const { return stage_->separate_launches(index_, frames); }

  void encode(py::handle signal_, py::handle latent_, py::handle workspace_, std::uintptr_t stream) const {
    const Tensor signal = read(signal_, "signal"), latent = read(latent_, "latent");
    signal.require_shape({-1, -1});
    signal.require_dtype("float32");
    signal.require_contiguous();
    const std::int64_t n = signal.shape[0], samples = signal.shape[1];
    const device::Sizes& s = stage_->sizes();
    if (s.mels && samples <= s.n_fft / 2) signal.refuse("is too short for the spectrogram.");
    if (samples < s.W) signal.refuse("is shorter than a frame.");
    latent.require_shape({n, samples / s.W, stage_->latent_ld()});
    latent.require_dtype(stored());
    latent.require_contiguous();
    char* const workspace = read_workspace(workspace_, stage_->encode_bytes(n, samples));
    const py::gil_scoped_release release;
    stage_->encode({index_, stream}, n, samples, reinterpret_cast<const float*>(signal.data), latent.data, workspace);
  }

  void mask(py::handle latent_, py::handle input_, py::handle partial_, py::handle masked_, py::handle workspace_,
            std::uintptr_t stream) const {
    const device::Sizes& s = stage_->sizes();
    const Tensor latent = read(latent_, "latent"), masked = read(masked_, "masked");
    latent.require_shape({-1, -1, s.N});
    const std::int64_t n = latent.shape[0], frames = latent.shape[1];
    const device::Frames shared = read_frames(latent, s.N);
    const auto per_instrument = [&](py::handle tensor_, const char* name, int channels) {
      const Tensor tensor = read(tensor_, name);
      tensor.require_shape({n, s.instruments, frames, channels});
      return read_frames(tensor, channels);
    };
    if (partial_.is_none() != (s.partial == 0)) {
      throw py::value_error(s.partial ? "This stage needs a partial latent." : "This stage takes no partial latent.");
    }
    const device::Frames input = input_.is_none() ? shared : per_instrument(input_, "input", s.N);
    const device::Frames partial = s.partial ? per_instrument(partial_, "partial", s.partial) : device::Frames{};
    masked.require_shape({n, s.instruments, frames, stage_->latent_ld()});
    masked.require_dtype(stored());
    masked.require_contiguous();
    char* const workspace = read_workspace(workspace_, stage_->mask_bytes(n, frames, input.instrument != 0));
    const py::gil_scoped_release release;
    stage_->mask({index_, stream}, n, frames, shared, input, partial, masked.data, workspace);
  }

  void decode(py::handle latent_, py::handle signal_, py::handle workspace_, std::uintptr_t stream) const {
    const device::Sizes& s = stage_->sizes();
    const Tensor latent = read(latent_, "latent"), signal = read(signal_, "signal");
    latent.require_shape({-1, -1, s.N});
    const std::int64_t n = latent.shape[0], frames = latent.shape[1];
    const device::Frames source = read_frames(latent, s.N);
    signal.require_shape({n, frames * s.W});
    signal.require_dtype("float32");
    signal.require_contiguous();
    char* const workspace = read_workspace(workspace_, stage_->decode_bytes(n, frames));
    const py::gil_scoped_release release;
    stage_->decode({index_, stream}, n, frames, source, reinterpret_cast<float*>(signal.data), workspace);
  }

 private:
  std::string stored() const { return stage_->stores_bfloat16() ? "bfloat16" : "float32"; }

  Tensor read(py::handle from, const char* name) const {
    Tensor tensor(from, name);
    tensor.require_device(type_, index_);
    return tensor;
  }

  char* read_workspace(py::handle from, std::int64_t bytes) const {
    const Tensor tensor = read(from, "workspace");
    tensor.require_bytes(bytes);
    return tensor.data;
  }

  device::Frames read_frames(const Tensor& tensor, int channels) const {
    tensor.require_dtype(stored());
    tensor.require_frames();
    const std::size_t last = tensor.shape.size() - 1;
    return {tensor.data, tensor.strides[0], last == 3 ? tensor.strides[1] : 0, tensor.strides[last - 1], channels};
  }

  std::unique_ptr<device::Stage> stage_;
  std::string type_;
  int index_ = -1;
};

// A separate Python class for each kind of device that runs stages.
template <class Bound>
void bind_stage(py::module_& module, const char* name, const char* doc, device::MakeStage make, const char* type) {
  py::class_<Bound>(module, name, doc)
      .def(py::init([make, type](const std::string& precision, const py::dict& sizes, const std::vector<float>& slopes,
                                 const std::map<std::string, py::object>& weights, const std::string& products) {
             return new Bound(make, type, precision, sizes, slopes, weights, products);
           }),
           py::arg("precision"), py::arg("sizes"), py::arg("slopes"), py::arg("weights"), py::arg("products") = "mma",
           "precision: float32, tf32 or bfloat16. weights: contiguous tensors by name, which the caller keeps. products: "
           "mma, or wgmma for those of frames in bfloat16 on compute capability 9.0.")
      .def_property_readonly("latent_ld", [](const Bound& b) { return b.stage().latent_ld(); })
      .def("separate_launches", &Bound::separate_launches, py::arg("frames"),
           "Why the blocks of the masking network are separate launches for so many frames; empty: one launch serves.")
      .def("encode_bytes", [](const Bound& b, std::int64_t n, std::int64_t t) { return b.stage().encode_bytes(n, t); })
      .def("mask_bytes",
           [](const Bound& b, std::int64_t n, std::int64_t t, bool own) { return b.stage().mask_bytes(n, t, own); })
      .def("decode_bytes", [](const Bound& b, std::int64_t n, std::int64_t t) { return b.stage().decode_bytes(n, t); })
      .def("encode", &Bound::encode, py::arg("signal"), py::arg("latent"), py::arg("workspace"), py::arg("stream"),
           "signal (n, samples) float32; writes latent (n, frames, latent_ld).")
      .def("mask", &Bound::mask, py::arg("latent"), py::arg("input"), py::arg("partial"), py::arg("masked"),
           py::arg("workspace"), py::arg("stream"),
           "latent (n, frames, N); input (n, instruments, frames, N): what the network reads instead of it, or None; "
           "partial (n, instruments, frames, N / 2) or None; writes masked (n, instruments, frames, latent_ld).")
      .def("decode", &Bound::decode, py::arg("latent"), py::arg("signal"), py::arg("workspace"), py::arg("stream"),
           "latent (n, frames, N); writes signal (n, frames * W) float32.");
}

struct EmulatedStage : BoundStage {
  using BoundStage::BoundStage;
};
struct DeviceStage : BoundStage {
  using BoundStage::BoundStage;
};

}  // namespace

void bind_cuda(py::module_& module) {
  module.def(
      "cuda_build_info",
      [] {
        py::dict info;
        info["architectures"] = METATASNET_CUDA_ARCHITECTURES;
        info["compiler"] = METATASNET_CUDA_COMPILER;
        info["reason"] = METATASNET_CUDA_REASON;
        return info;
      },
      "architectures and compiler of the CUDA kernels, or the reason why they were not built.");
  module.def(
      "cuda_refusal",
      [](const py::dict& sizes) -> py::object {
        try {
          emulated::check(read_sizes(sizes));
        } catch (const std::invalid_argument& error) {
          return py::str(error.what());
        }
        return py::none();
      },
      py::arg("sizes"), "Why the kernels do not cover a stage's sizes, or None.");
  module.def("cuda_shared_bytes", [](const py::dict& sizes) { return emulated::shared_bytes(read_sizes(sizes)); },
             py::arg("sizes"), "Shared memory that a stage's most demanding block asks for.");
  module.def("set_emulated_order", &emulated::set_order, py::arg("order"),
             "The order in which emulated threads and blocks run: 0 ascending, 1 descending, others shuffle, and odd ones "
             "let warps drift apart.");
  module.def("set_emulated_multiprocessors", &emulated::set_multiprocessors, py::arg("count"),
             "How many multiprocessors the emulated device has; 132 to begin with.");
  module.def(
      "multiply_emulated_split",
      [](py::handle data_, py::handle weights_, py::handle out_) {
        const Tensor data(data_, "data"), weights(weights_, "weights"), out(out_, "out");
        data.require_shape({-1, -1});
        weights.require_shape({-1, data.shape[1]});
        const int channels = static_cast<int>(data.shape[1]), outputs = static_cast<int>(weights.shape[0]);
        if (channels % 32) data.refuse("must have a multiple of 32 channels.");
        out.require_shape({data.shape[0], (outputs + 31) / 32 * 32});
        for (const Tensor* tensor : {&data, &weights, &out}) {
          tensor->require_device("cpu", data.index);
          tensor->require_dtype("float32");
          tensor->require_contiguous();
        }
        emulated::multiply_split(data.shape[0], channels, outputs, reinterpret_cast<const float*>(data.data),
                                 reinterpret_cast<const float*>(weights.data), reinterpret_cast<float*>(out.data));
      },
      py::arg("data"), py::arg("weights"), py::arg("out"),
      "out (frames, outputs padded to 32) = data (frames, channels) times weights (outputs, channels), in split TF32.");
  module.def(
      "record_emulated_launches",
      [](const py::function& job) {
        std::vector<emulated::Recorded> launches;
        emulated::record_to(&launches);
        const struct Stop {
          ~Stop() { emulated::record_to(nullptr); }
        } stop;
        job();
        py::list found;
        for (const emulated::Recorded& l : launches) {
          found.append(py::make_tuple(l.kernel, py::make_tuple(l.grid[0], l.grid[1], l.grid[2]), l.threads, l.blocks,
                                      l.cluster, l.shared_bytes, py::bytes(l.arguments)));
        }
        return found;
      },
      py::arg("job"),
      "What emulated stages would launch while job() runs, instead of computing it: (mangled type of the kernel, grid, "
      "threads, blocks on a multiprocessor, blocks of a cluster, shared bytes, arguments as the device gets them). Tensors "
      "are not touched.");
  bind_stage<EmulatedStage>(module, "EmulatedCudaStage", "CudaStage on the host: every thread of a block is a fiber.",
                            emulated::make_stage, "cpu");
#if METATASNET_HAS_CUDA
  module.def("cuda_obstacle", &cuda::obstacle, py::arg("device"),
             "Why the kernels cannot run on a device, in the words of the CUDA runtime; empty where they can.");
  bind_stage<DeviceStage>(module, "CudaStage", "One stage's weights on a GPU, and its jobs.", cuda::make_stage, "cuda");
#endif
}

}  // namespace metatasnet
