// A torch tensor, read through its Python attributes and checked; the module uses nothing else of torch.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "bindings/bindings.h"

namespace metatasnet {

struct Tensor {
  std::string name;
  char* data;
  std::vector<std::int64_t> shape, strides;
  std::string type;    // its dtype
  std::string device;  // its type
  int index;           // device number; -1 where there is only one

  Tensor(pybind11::handle tensor, std::string called) : name(std::move(called)) {
    const std::string dtype = pybind11::str(tensor.attr("dtype"));
    type = dtype.substr(dtype.find('.') + 1);
    const pybind11::object where = tensor.attr("device");
    device = pybind11::str(where.attr("type"));
    index = where.attr("index").is_none() ? -1 : where.attr("index").cast<int>();
    shape = tensor.attr("shape").cast<std::vector<std::int64_t>>();
    strides = tensor.attr("stride")().cast<std::vector<std::int64_t>>();
    data = reinterpret_cast<char*>(tensor.attr("data_ptr")().cast<std::uintptr_t>());
  }

  [[noreturn]] void refuse(const std::string& why) const { throw pybind11::value_error(name + " " + why); }

  static std::string text(const std::vector<std::int64_t>& values) {
    std::string s = "(";
    for (std::size_t i = 0; i < values.size(); ++i) s += (i ? ", " : "") + std::to_string(values[i]);
    return s + ")";
  }

  bool empty() const { return std::find(shape.begin(), shape.end(), 0) != shape.end(); }  // strides then mean nothing

  void require_device(const std::string& kind, int number) const {
    if (device == kind && index == number) return;
    const auto written = [](const std::string& t, int i) { return i < 0 ? t : t + ":" + std::to_string(i); };
    refuse("must be on " + written(kind, number) + ", got " + written(device, index) + ".");
  }

  // -1 in `expected` stands for any size.
  void require_shape(const std::vector<std::int64_t>& expected) const {
    bool same = shape.size() == expected.size();
    for (std::size_t i = 0; same && i < shape.size(); ++i) same = expected[i] < 0 || shape[i] == expected[i];
    if (!same) refuse("must have shape " + text(expected) + ", got " + text(shape) + ".");
  }

  void require_dtype(const std::string& expected) const {
    if (type != expected) refuse("must be " + expected + ", got " + type + ".");
  }

  void require_bytes(std::int64_t least) const {
    require_dtype("uint8");
    if (shape.size() != 1 || shape[0] < least) {
      refuse("must have at least " + std::to_string(least) + " bytes, got shape " + text(shape) + ".");
    }
    require_contiguous();
  }

  void require_dense() const {
    std::int64_t stride = 1;
    for (std::size_t i = shape.size(); i-- > 0; stride *= shape[i]) {
      if (!empty() && shape[i] > 1 && strides[i] != stride) refuse("must be contiguous, got strides " + text(strides) + ".");
    }
  }

  void require_contiguous() const {
    require_dense();
    require_aligned();
  }

  void require_contiguous_channels() const {
    if (!empty() && shape.back() > 1 && strides.back() != 1)
      refuse("must have contiguous channels, got strides " + text(strides) + ".");
  }

  // Contiguous channels, in rows that start at multiples of 16 bytes.
  void require_frames() const {
    if (empty()) return;
    const std::int64_t vector = type == "bfloat16" ? 8 : 4;
    bool good = shape.back() == 1 || strides.back() == 1;
    for (std::size_t i = 0; i + 1 < shape.size(); ++i) good = good && (shape[i] == 1 || strides[i] % vector == 0);
    if (!good) refuse("must have contiguous channels in rows of 16 bytes, got strides " + text(strides) + ".");
    constexpr std::int64_t kFurthest = std::int64_t{1} << 23;  // kernels count bytes within 128 rows in 32 bits
    if (strides[strides.size() - 2] > kFurthest) refuse("has rows too far apart, got strides " + text(strides) + ".");
    require_aligned();
  }

 private:
  void require_aligned() const {
    if (!empty() && reinterpret_cast<std::uintptr_t>(data) % 16) refuse("must lie at a multiple of 16 bytes.");
  }
};

}  // namespace metatasnet
