#include "cpu/tensors.h"

#include <stdexcept>

#include "cpu/stage.h"

namespace metatasnet {
namespace {

std::string text(const std::vector<std::int64_t>& shape) {
  std::string s = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + ")";
}

template <class T>
class Lookup {
 public:
  explicit Lookup(const Arrays<T>& arrays) : arrays_(arrays) {}

  T* get(const std::string& name, const std::vector<std::int64_t>& shape) const {
    const auto found = arrays_.find(name);
    if (found == arrays_.end()) throw std::invalid_argument("The weights lack '" + name + "'.");
    if (found->second.shape != shape) {
      throw std::invalid_argument("The weight '" + name + "' must have shape " + text(shape) + ", got " +
                                  text(found->second.shape) + ".");
    }
    return found->second.data;
  }

  T* get_if_there(const std::string& name, const std::vector<std::int64_t>& shape) const {
    return arrays_.count(name) ? get(name, shape) : nullptr;
  }

  NormTensors<T> norm(const std::string& name, int instruments, int channels) const {
    return {get(name + ".scale", {instruments, channels}), get(name + ".shift", {instruments, channels})};
  }

 private:
  const Arrays<T>& arrays_;
};

}  // namespace

int StageSizes::wide() const {
  int sum = 0;
  for (const int width : widths) sum += width;
  return sum;
}

Taps taps_of(const StageSizes& s, int filter) {
  const int begin = (s.longest() - s.kernel_sizes[filter]) / 2;
  return {begin, begin + s.kernel_sizes[filter]};
}

Taps decoder_taps(const StageSizes& s, int channel) {
  int filter = static_cast<int>(s.widths.size()) - 1;
  for (; channel >= s.widths[filter]; --filter) channel -= s.widths[filter];
  return taps_of(s, filter);
}

void check(const StageSizes& s) {
  const auto require = [](bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(std::string("Impossible stage: ") + what);
  };
  require(s.instruments >= 1 && s.instruments <= kMostInstruments, "there must be 1 to 32 instruments.");
  require(s.softmax >= 0 && s.softmax <= s.instruments, "the softmax is over 0 to all instruments.");
  require(s.N > 0 && s.B > 0 && s.H > 0 && s.W > 0, "N, B, H and W must be positive.");
  require(s.N % kGroups == 0 && s.B % kGroups == 0 && s.H % kGroups == 0, "N, B and H must be multiples of 8.");
  require(s.partial >= 0 && (s.N + s.partial) % kGroups == 0, "the input channels must be a multiple of 8.");
  require(!s.dilations.empty(), "there must be a block.");
  require(!s.kernel_sizes.empty() && s.kernel_sizes.size() == s.widths.size(), "each filter needs a width.");
  for (const int d : s.dilations) require(d > 0, "dilations must be positive.");
  for (const int w : s.widths) require(w > 0, "decoder widths must be positive.");
  int shortest = s.W;
  for (const int k : s.kernel_sizes) {
    require(k >= shortest && (k - s.W) % 2 == 0, "filters must grow and exceed W by even numbers.");
    shortest = k;
  }
}

template <class T>
MaskTensors<T> mask_tensors(const StageSizes& s, const Arrays<T>& arrays) {
  const Lookup<T> in(arrays);
  const int instruments = s.instruments;
  MaskTensors<T> m;
  m.prelu_1 = in.get("mask.prelu_1", {1});
  m.prelu_2 = in.get("mask.prelu_2", {1});
  m.prelu_3 = in.get("mask.prelu_3", {1});
  m.prelu_4 = in.get("mask.prelu_4", {1});
  m.norm_1 = in.norm("mask.norm_1", instruments, s.inputs());
  m.norm_2 = in.norm("mask.norm_2", instruments, s.B);
  m.norm_3 = in.norm("mask.norm_3", instruments, s.B);
  m.norm_4 = in.norm("mask.norm_4", instruments, s.N);
  m.in_conv = in.get("mask.in_conv", {instruments, s.B, s.inputs()});
  m.mask_output = in.get("mask.mask_output", {instruments, s.N, s.B});
  for (int b = 0; b < s.blocks(); ++b) {
    const std::string name = "mask.blocks." + std::to_string(b);
    const bool last = b + 1 == s.blocks();
    BlockTensors<T> block;
    block.prelu_1 = in.get(name + ".prelu_1", {1});
    block.prelu_2 = in.get(name + ".prelu_2", {1});
    block.norm_1 = in.norm(name + ".norm_1", instruments, s.H);
    block.norm_2 = in.norm(name + ".norm_2", instruments, s.H);
    block.conv1d = in.get(name + ".conv1d", {instruments, s.H, s.B});
    block.dconv1d = in.get(name + ".dconv1d", {instruments, s.H, 3});
    block.res_out = last ? nullptr : in.get(name + ".res_out", {instruments, s.B, s.H});
    block.skip_out = in.get(name + ".skip_out", {instruments, s.B, s.H});
    block.res_bias = last ? nullptr : in.get_if_there(name + ".res_out.bias", {instruments, s.B});
    block.skip_bias = in.get_if_there(name + ".skip_out.bias", {instruments, s.B});
    m.blocks.push_back(block);
  }
  return m;
}

template <class T>
EncoderTensors<T> encoder_tensors(const StageSizes& s, const Arrays<T>& arrays) {
  const Lookup<T> in(arrays);
  return {in.get("encoder.bank", {s.bank(), s.longest()}), in.get("encoder.bottleneck_1", {s.N, s.bank()}),
          in.get("encoder.bottleneck_2", {s.N, s.N})};
}

template <class T>
DecoderTensors<T> decoder_tensors(const StageSizes& s, const Arrays<T>& arrays) {
  const Lookup<T> in(arrays);
  return {in.get("decoder.bottleneck", {s.N, s.wide()}), in.get("decoder.filters", {s.wide(), s.longest()})};
}

template MaskTensors<const float> mask_tensors(const StageSizes&, const Arrays<const float>&);
template MaskTensors<float> mask_tensors(const StageSizes&, const Arrays<float>&);
template EncoderTensors<const float> encoder_tensors(const StageSizes&, const Arrays<const float>&);
template EncoderTensors<float> encoder_tensors(const StageSizes&, const Arrays<float>&);
template DecoderTensors<const float> decoder_tensors(const StageSizes&, const Arrays<const float>&);
template DecoderTensors<float> decoder_tensors(const StageSizes&, const Arrays<float>&);

}  // namespace metatasnet
