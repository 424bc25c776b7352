// Construct a stage: check sizes and weights, plan workspaces.
#include "cuda/stage.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "cuda/log_power.h"
#include "cuda/mix.h"
#include "cuda/norm.h"
#include "cuda/overlap_add.h"
#include "cuda/products.h"
#include "cuda/workspace.h"

namespace metatasnet::METATASNET_DEVICES {
namespace {

constexpr std::size_t kSharedBytes = 160 * 1024;  // shared memory of a block

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

std::string text(const std::vector<std::int64_t>& values) {
  std::string s = "(";
  for (std::size_t i = 0; i < values.size(); ++i) s += (i ? ", " : "") + std::to_string(values[i]);
  return s + ")";
}

class Finder {
 public:
  Finder(const std::map<std::string, Array>& arrays, Type stored) : arrays_(arrays), stored_(stored) {}

  const void* stored(const std::string& name, const std::vector<std::int64_t>& shape) const {
    return find(name, shape, stored_);
  }
  const float* floats(const std::string& name, const std::vector<std::int64_t>& shape) const {
    return static_cast<const float*>(find(name, shape, Type::float32));
  }
  const double* doubles(const std::string& name, const std::vector<std::int64_t>& shape) const {
    return static_cast<const double*>(find(name, shape, Type::float64));
  }

 private:
  const void* find(const std::string& name, const std::vector<std::int64_t>& shape, Type type) const {
    const auto found = arrays_.find(name);
    if (found == arrays_.end()) refuse("The weights lack '" + name + "'.");
    const Array& array = found->second;
    if (array.shape != shape) {
      refuse("The weight '" + name + "' must have shape " + text(shape) + ", got " + text(array.shape) + ".");
    }
    if (array.type != type) {
      const char* const names[] = {"float32", "bfloat16", "float64"};
      refuse("The weight '" + name + "' must be " + names[static_cast<int>(type)] + ".");
    }
    return array.data;
  }

  const std::map<std::string, Array>& arrays_;
  Type stored_;
};

}  // namespace

void check(const Sizes& s) {
  const std::pair<const char*, int> positive[] = {{"N", s.N},       {"W", s.W},       {"B", s.B},
                                                  {"H", s.H},       {"window", s.window}, {"bank", s.bank},
                                                  {"wide", s.wide}};
  for (const auto& [name, value] : positive) {
    if (value < 1) refuse(std::string(name) + " must be at least 1, got " + std::to_string(value) + ".");
  }
  for (const int channels : {s.N, s.B, s.H, s.N + s.partial}) {
    if (channels % kGroups) refuse("Channels must be multiples of 8, got " + std::to_string(channels) + ".");
  }
  if (s.instruments < 1 || s.instruments > kMostInstruments) {
    refuse("There must be 1 to " + std::to_string(kMostInstruments) + " instruments, got " +
           std::to_string(s.instruments) + ".");
  }
  if (s.softmax < 0 || s.softmax > s.instruments) {
    refuse("The softmax must be over 0 to all instruments, got " + std::to_string(s.softmax) + ".");
  }
  if (s.mels < 0) refuse("mels must be at least 0, got " + std::to_string(s.mels) + ".");
  if (s.mels && s.hop < 1) refuse("hop must be at least 1, got " + std::to_string(s.hop) + ".");
  if (s.partial < 0) refuse("partial must be at least 0, got " + std::to_string(s.partial) + ".");
  if (s.blocks() < 1) refuse("There must be at least one block.");
  for (const int d : s.dilations) {
    if (d < 1) refuse("Dilations must be at least 1, got " + std::to_string(d) + ".");
  }
  if (s.window < s.W || (s.window - s.W) % 2) {
    refuse("window - W must be even and at least 0, got " + std::to_string(s.window) + " - " + std::to_string(s.W) + ".");
  }
  if (reach_of(s.window, s.W) > kTile / 2) refuse("window must be at most " + std::to_string(kTile / 2) + " times W.");
  if (overlap_add_shared_bytes(s.W) > kSharedBytes) {
    const std::size_t most = (kSharedBytes - kOverlapAddStageBytes) / (sizeof(float) * kTile);
    refuse("W must be at most " + std::to_string(most) + ", got " + std::to_string(s.W) + ".");
  }
  if (s.mels && (s.n_fft < 4 || (s.n_fft & (s.n_fft - 1)) || log_power_shared_bytes(s.n_fft) > kSharedBytes)) {
    refuse("n_fft must be a power of two from 4 to 8192, got " + std::to_string(s.n_fft) + ".");
  }
  const auto sum = [](const std::vector<int>& values) { return std::accumulate(values.begin(), values.end(), 0); };
  if (s.taps.size() != s.inputs.size() || sum(s.inputs) != s.wide || !std::is_sorted(s.taps.begin(), s.taps.end()) ||
      s.taps.empty() || s.taps.back() != s.window || s.turn < 0 || s.turn >= s.window) {
    refuse("The decoder's filters must go from the shortest to one as long as the window, and have all inputs.");
  }
}

std::size_t shared_bytes(const Sizes& s) {
  return std::max({overlap_add_shared_bytes(s.W), s.mels ? log_power_shared_bytes(s.n_fft) : 0,
                   std::size_t{MixConv::shared_bytes}});
}

Stage::Stage(Precision precision, Products products, const Sizes& sizes, const Slopes& slopes,
             const std::map<std::string, Array>& arrays)
    : precision_(precision), products_(products), sizes_(sizes), slopes_(slopes), weights_() {
  const Sizes& s = sizes_;
  check(s);
  if (products == Products::wgmma && precision != Precision::bfloat16) refuse("wgmma multiplies bfloat16.");
  if (slopes_.blocks.size() != 2 * s.dilations.size()) refuse("There must be two slopes for each block.");
  const Finder find(arrays, stores_bfloat16() ? Type::bfloat16 : Type::float32);
  const int b_ld = padded(s.B), h_ld = padded(s.H), n_ld = padded(s.N);
  weights_.bank = find.stored("encoder.bank", {s.bank, padded(s.window)});
  weights_.bottleneck_1 = find.stored("encoder.bottleneck_1", {s.N, padded(s.bank)});
  weights_.bottleneck_2 = find.stored("encoder.bottleneck_2", {s.N, n_ld});
  if (s.mels) {
    weights_.stft_window = find.floats("encoder.window", {s.n_fft});
    weights_.twiddles = find.doubles("encoder.twiddles", {s.n_fft / 2, 2});
    weights_.mean = find.floats("encoder.mean", {s.bins()});
    weights_.to_mel = find.floats("encoder.to_mel", {s.mels, padded(s.bins())});
    weights_.to_latent = find.floats("encoder.to_latent", {s.N, padded(s.mels)});
    weights_.mel_bias = find.floats("encoder.mel_bias", {s.N});
  }
  weights_.expansion = find.stored("decoder.expansion", {s.wide, n_ld});
  weights_.filters = find.stored("decoder.filters", {s.window, padded(s.wide)});
  weights_.in_conv = find.floats("mask.in_conv", {s.instruments, s.B, n_ld + padded(s.partial)});
  weights_.mask_output = find.floats("mask.mask_output", {s.instruments, s.N, b_ld});
  weights_.norm_1 = find.floats("mask.norm_1", {s.instruments, 2, s.N + s.partial});
  weights_.norm_2 = find.floats("mask.norm_2", {s.instruments, 2, s.B});
  weights_.norm_3 = find.floats("mask.norm_3", {s.instruments, 2, s.B});
  weights_.norm_4 = find.floats("mask.norm_4", {s.instruments, 2, s.N});
  const std::int64_t blocks = s.blocks(), conv_bytes = stores_bfloat16() ? sizeof(Bfloat16) : sizeof(float);
  const void* const conv = find.stored("mask.blocks.conv1d", {blocks, s.instruments, s.H, b_ld});
  const float* const taps = find.floats("mask.blocks.taps", {blocks, s.instruments, 3, h_ld});
  const float* const norm_1 = find.floats("mask.blocks.norm_1", {blocks, s.instruments, 2, s.H});
  const float* const norm_2 = find.floats("mask.blocks.norm_2", {blocks, s.instruments, 2, s.H});
  if (products == Products::wgmma) {
    weights_.skip = find.stored("mask.blocks.skip", {s.instruments, s.B, blocks * h_ld});
    if (blocks > 1) weights_.residual = find.stored("mask.blocks.residual", {blocks - 1, s.instruments, s.B, h_ld});
    if (s.biased) weights_.skip_bias = find.floats("mask.blocks.skip_bias", {s.instruments, s.B});
    if (s.biased && blocks > 1) {
      weights_.residual_bias = find.floats("mask.blocks.residual_bias", {blocks - 1, s.instruments, s.B});
    }
  }
  for (int i = 0; i < s.blocks(); ++i) {
    const std::string name = "mask.blocks." + std::to_string(i) + ".";
    const int outputs = i + 1 < s.blocks() ? 2 * s.B : s.B;
    const std::int64_t before = std::int64_t{i} * s.instruments;
    BlockWeights block{};
    block.conv = static_cast<const char*>(conv) + before * s.H * b_ld * conv_bytes;
    block.taps = taps + before * 3 * h_ld;
    block.norm_1 = norm_1 + before * 2 * s.H;
    block.norm_2 = norm_2 + before * 2 * s.H;
    block.mix = find.floats(name + "mix", {s.instruments, outputs, h_ld});
    if (s.biased) block.mix_bias = find.floats(name + "mix_bias", {s.instruments, outputs});
    weights_.blocks.push_back(block);
  }
}

std::string Stage::separate_launches(int device, std::int64_t frames) const {
  if (products_ != Products::wgmma) return "products are by mma";
  const Shares shares(sizes_, frames);
  if (!shares.obstacle.empty() || persistent_units(Stream(device, 0), shares) > 0) return shares.obstacle;
  return "the GPU does not run " + std::to_string(shares.blocks) + " of its blocks at the same time";
}

std::int64_t Stage::encode_bytes(std::int64_t n, std::int64_t samples) const {
  Arena arena(nullptr);
  const std::int64_t items = items_at_once(n, samples / sizes_.W, 1);
  if (stores_bfloat16()) EncodeBuffers<Bfloat16>(arena, sizes_, items, samples);
  if (!stores_bfloat16()) EncodeBuffers<float>(arena, sizes_, items, samples);
  return arena.bytes();
}

std::int64_t Stage::mask_bytes(std::int64_t n, std::int64_t frames, bool own_inputs) const {
  Arena arena(nullptr);
  const std::int64_t items = items_at_once(n, frames, sizes_.instruments);
  if (stores_bfloat16()) MaskBuffers<Bfloat16>(arena, sizes_, items, frames, own_inputs);
  if (!stores_bfloat16()) MaskBuffers<float>(arena, sizes_, items, frames, own_inputs);
  return arena.bytes();
}

std::int64_t Stage::decode_bytes(std::int64_t n, std::int64_t frames) const {
  Arena arena(nullptr);
  const std::int64_t items = items_at_once(n, frames, 1);
  if (stores_bfloat16()) DecodeBuffers<Bfloat16>(arena, sizes_, items, frames);
  if (!stores_bfloat16()) DecodeBuffers<float>(arena, sizes_, items, frames);
  return arena.bytes();
}

void Stage::encode(Place place, std::int64_t n, std::int64_t samples, const float* signal, void* latent,
                   char* workspace) const {
  if (n == 0) return;
  const Stream stream(place.device, place.stream);
  if (precision_ == Precision::bfloat16) encode_in<InBfloat16>(stream, n, samples, signal, latent, workspace);
  if (precision_ == Precision::tf32) encode_in<InTf32>(stream, n, samples, signal, latent, workspace);
  if (precision_ == Precision::float32) encode_in<InFloat32>(stream, n, samples, signal, latent, workspace);
}

void Stage::mask(Place place, std::int64_t n, std::int64_t frames, const Frames& latent, const Frames& input,
                 const Frames& partial, void* masked, char* workspace) const {
  if (n == 0 || frames == 0) return;
  const Stream stream(place.device, place.stream);
  const auto run = [&](auto arithmetic) {
    mask_in<decltype(arithmetic)>(stream, n, frames, latent, input, partial, masked, workspace);
  };
  if (precision_ == Precision::bfloat16) run(InBfloat16());
  if (precision_ == Precision::tf32) run(InTf32());
  if (precision_ == Precision::float32) run(InFloat32());
}

void Stage::decode(Place place, std::int64_t n, std::int64_t frames, const Frames& latent, float* signal,
                   char* workspace) const {
  if (n == 0 || frames == 0) return;
  const Stream stream(place.device, place.stream);
  if (precision_ == Precision::bfloat16) decode_in<InBfloat16>(stream, n, frames, latent, signal, workspace);
  if (precision_ == Precision::tf32) decode_in<InTf32>(stream, n, frames, latent, signal, workspace);
  if (precision_ == Precision::float32) decode_in<InFloat32>(stream, n, frames, latent, signal, workspace);
}

std::unique_ptr<device::Stage> make_stage(Precision precision, Products products, const Sizes& sizes,
                                          const Slopes& slopes, const std::map<std::string, Array>& weights) {
  return std::make_unique<Stage>(precision, products, sizes, slopes, weights);
}

#if defined(__CUDACC__)
cudaError_t codec_obstacle();
cudaError_t masking_obstacle();
cudaError_t bfloat16_obstacle();
cudaError_t tf32_obstacle();
cudaError_t float32_obstacle();
cudaError_t wgmma_obstacle();

std::string obstacle(int device) {
  int before = 0;
  cudaError_t error = cudaGetDevice(&before);
  if (error == cudaSuccess) error = cudaSetDevice(device);
  for (const auto& of_unit : {codec_obstacle, masking_obstacle, bfloat16_obstacle, tf32_obstacle, float32_obstacle,
                              wgmma_obstacle}) {
    if (error == cudaSuccess) error = of_unit();
  }
  static_cast<void>(cudaSetDevice(before));
  static_cast<void>(cudaGetLastError());
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}
#endif

}  // namespace metatasnet::METATASNET_DEVICES
