// The backend `cpu` for Python: what its bindings share.
#pragma once

#include <pybind11/numpy.h>

#include <map>
#include <string>

#include "bindings/tensor.h"
#include "cpu/stage.h"

namespace metatasnet {

using FloatArray = pybind11::array_t<float, pybind11::array::c_style>;

// A stage with the arrays that its backward passes read.
struct HeldStage {
  std::map<std::string, FloatArray> weights;
  Stage stage;
};

inline int checked_threads(int threads) {
  if (threads < 1) throw pybind11::value_error("threads must be at least 1, got " + std::to_string(threads) + ".");
  return threads;
}

inline const char* storage_type(const Stage& stage) { return stage.stores_bfloat16() ? "bfloat16" : "float32"; }

// A CPU tensor that has this dtype, shape and layout; -1 stands for any size.
inline Tensor dense_tensor(pybind11::handle tensor, const char* name, const std::vector<std::int64_t>& shape,
                           const std::string& dtype) {
  const Tensor t(tensor, name);
  t.require_device("cpu", -1);
  t.require_shape(shape);
  t.require_dtype(dtype);
  t.require_dense();
  return t;
}

// A CPU tensor whose last two axes are frames and channels, in float32 or bfloat16.
inline Tensor frames_tensor(pybind11::handle tensor, const char* name, const std::vector<std::int64_t>& shape) {
  const Tensor t(tensor, name);
  t.require_device("cpu", -1);
  t.require_shape(shape);
  if (t.type != "float32" && t.type != "bfloat16") t.refuse("must be float32 or bfloat16, got " + t.type + ".");
  t.require_contiguous_channels();
  return t;
}

inline Source frames_of(const Tensor& t) {
  return {t.data, t.strides[t.strides.size() - 2], static_cast<int>(t.shape.back()), t.type == "bfloat16"};
}

// (n, instruments, frames, channels).
inline Latents latents_of(const Tensor& t) { return {frames_of(t), t.strides[0], t.strides[1]}; }

// The spectrogram's share (n, frames, latent_ld), or its gradient; null for None.
struct Share {
  float* values = nullptr;
  std::int64_t frames = 1;
};

inline Share share_of(pybind11::handle tensor, const char* name, std::int64_t n, const Stage& stage) {
  if (tensor.is_none()) return {};
  const Tensor t = dense_tensor(tensor, name, {n, -1, stage.latent_ld()}, "float32");
  if (t.shape[1] < 1) throw pybind11::value_error(std::string(name) + " must have at least one frame.");
  return {reinterpret_cast<float*>(t.data), t.shape[1]};
}

// Memory of `bytes` bytes; null for None.
inline char* kept_bytes(pybind11::handle tensor, std::int64_t bytes) {
  if (tensor.is_none()) return nullptr;
  const Tensor t(tensor, "kept");
  t.require_device("cpu", -1);
  t.require_bytes(bytes);
  return t.data;
}

void bind_cpu_gradients(pybind11::class_<HeldStage>& stage);

}  // namespace metatasnet
