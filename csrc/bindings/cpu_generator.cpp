// The generated layers of the backend `cpu`.
#include "bindings/bindings.h"
#include "bindings/cpu_stage.h"
#include "cpu/dispatch.h"
#include "cpu/generator.h"

namespace py = pybind11;

namespace metatasnet {
namespace {

float* floats(py::handle tensor, const char* name, const std::vector<std::int64_t>& shape) {
  return reinterpret_cast<float*>(dense_tensor(tensor, name, shape, "float32").data);
}

// Layers of hidden (layers, width, instruments) values; `out` is the result, or its gradient.
std::vector<GeneratedLayer> layers_of(const Tensor& hidden, const std::vector<py::object>& kernels,
                                      const std::vector<py::object>& out) {
  const std::int64_t width = hidden.shape[1], instruments = hidden.shape[2];
  if (static_cast<std::int64_t>(kernels.size()) != hidden.shape[0] || kernels.size() != out.size())
    throw py::value_error("Each layer needs its hidden values, its kernel and its result.");
  std::vector<GeneratedLayer> layers;
  for (std::size_t l = 0; l < kernels.size(); ++l) {
    const Tensor kernel = dense_tensor(kernels[l], "kernel", {-1, width}, "float32");
    GeneratedLayer layer{};
    layer.outputs = kernel.shape[0];
    layer.hidden = reinterpret_cast<const float*>(hidden.data) + static_cast<std::int64_t>(l) * width * instruments;
    layer.kernel = reinterpret_cast<const float*>(kernel.data);
    layer.out = floats(out[l], "out", {instruments, layer.outputs});
    layers.push_back(layer);
  }
  return layers;
}

void forward(const std::string& isa, py::handle hidden_, const std::vector<py::object>& kernels,
             const std::vector<py::object>& biases, const std::vector<py::object>& out, int threads) {
  const Tensor hidden = dense_tensor(hidden_, "hidden", {-1, -1, -1}, "float32");
  std::vector<GeneratedLayer> layers = layers_of(hidden, kernels, out);
  if (biases.size() != layers.size()) throw py::value_error("Each layer needs its bias.");
  for (std::size_t l = 0; l < layers.size(); ++l) layers[l].bias = floats(biases[l], "bias", {layers[l].outputs});
  const Kernels& compiled = kernels_for(isa);
  checked_threads(threads);
  const py::gil_scoped_release release;
  expand(compiled, layers, static_cast<int>(hidden.shape[2]), static_cast<int>(hidden.shape[1]), threads);
}

void backward(const std::string& isa, py::handle hidden_, const std::vector<py::object>& kernels,
              const std::vector<py::object>& gradients, py::handle hidden_gradient_,
              const std::vector<py::object>& kernel_gradients, const std::vector<py::object>& bias_gradients,
              int threads) {
  const Tensor hidden = dense_tensor(hidden_, "hidden", {-1, -1, -1}, "float32");
  std::vector<GeneratedLayer> layers = layers_of(hidden, kernels, gradients);
  if (kernel_gradients.size() != layers.size() || bias_gradients.size() != layers.size())
    throw py::value_error("Each layer needs room for its gradients.");
  float* hidden_gradient = floats(hidden_gradient_, "hidden_gradient", hidden.shape);
  const std::int64_t width = hidden.shape[1], instruments = hidden.shape[2];
  for (std::size_t l = 0; l < layers.size(); ++l) {
    layers[l].kernel_gradient = floats(kernel_gradients[l], "kernel_gradient", {layers[l].outputs, width});
    layers[l].bias_gradient = floats(bias_gradients[l], "bias_gradient", {layers[l].outputs});
    layers[l].hidden_gradient = hidden_gradient + static_cast<std::int64_t>(l) * width * instruments;
  }
  const Kernels& compiled = kernels_for(isa);
  checked_threads(threads);
  const py::gil_scoped_release release;
  expand_gradient(compiled, layers, static_cast<int>(instruments), static_cast<int>(width), threads);
}

}  // namespace

void bind_cpu_generator(py::module_& module) {
  module.def("cpu_expand", &forward, py::arg("isa"), py::arg("hidden"), py::arg("kernels"), py::arg("biases"),
             py::arg("out"), py::arg("threads"),
             "hidden (layers, width, I); for each layer kernel (outputs, width) and bias (outputs,); writes out "
             "(I, outputs) = bias + kernel hidden.");
  module.def("cpu_expand_gradient", &backward, py::arg("isa"), py::arg("hidden"), py::arg("kernels"),
             py::arg("gradients"), py::arg("hidden_gradient"), py::arg("kernel_gradients"), py::arg("bias_gradients"),
             py::arg("threads"), "From the gradients (I, outputs) of each layer's result; all are written.");
}

}  // namespace metatasnet
