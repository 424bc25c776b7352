// Runs the CPU kernels of every instruction set without Python, for the sanitizers: small stages of awkward sizes,
// inputs that end where their allocation ends, several numbers of threads. Prints a line and exits 1 where results
// disagree.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "cpu/cosines.h"
#include "cpu/dispatch.h"
#include "cpu/generator.h"
#include "cpu/stage.h"

namespace {

using namespace metatasnet;

struct Weights {
  std::map<std::string, std::vector<float>> values;
  Arrays<const float> arrays;
  std::mt19937 random{7};
  int instruments;

  explicit Weights(int count) : instruments(count) {}

  void add(const std::string& name, const std::vector<std::int64_t>& shape, float scale, float offset = 0.0f) {
    std::int64_t count = 1;
    for (const std::int64_t n : shape) count *= n;
    std::vector<float>& v = values[name];
    for (std::int64_t i = 0; i < count; ++i) v.push_back(offset + scale * std::normal_distribution<float>()(random));
    arrays[name] = {v.data(), shape};
  }

  void clear_outside(const std::string& name, int row, Taps taps, int columns) {
    float* v = values[name].data() + static_cast<std::ptrdiff_t>(row) * columns;
    std::fill(v, v + taps.begin, 0.0f);
    std::fill(v + taps.end, v + columns, 0.0f);
  }

  void norm(const std::string& name, int channels) {
    add(name + ".scale", {instruments, channels}, 0.3f, 1.0f);
    add(name + ".shift", {instruments, channels}, 0.3f);
  }

  void convolution(const std::string& name, int outputs, int inputs) {
    add(name, {instruments, outputs, inputs}, 1.0f / std::sqrt(static_cast<float>(inputs)));
  }
};

Weights random_weights(const StageSizes& s) {
  Weights w(s.instruments);
  w.add("encoder.bank", {s.bank(), s.longest()}, 0.2f);
  w.add("decoder.filters", {s.wide(), s.longest()}, 0.2f);
  for (int o = 0; o < s.bank(); ++o) w.clear_outside("encoder.bank", o, taps_of(s, o / (s.N / 4)), s.longest());
  for (int c = 0; c < s.wide(); ++c) w.clear_outside("decoder.filters", c, decoder_taps(s, c), s.longest());
  w.add("encoder.bottleneck_1", {s.N, s.bank()}, 0.2f);
  w.add("encoder.bottleneck_2", {s.N, s.N}, 0.2f);
  w.add("decoder.bottleneck", {s.N, s.wide()}, 0.2f);
  for (int i = 1; i <= 4; ++i) w.add("mask.prelu_" + std::to_string(i), {1}, 0.05f, 0.25f);
  w.norm("mask.norm_1", s.N + s.partial);
  w.norm("mask.norm_2", s.B);
  w.norm("mask.norm_3", s.B);
  w.norm("mask.norm_4", s.N);
  w.convolution("mask.in_conv", s.B, s.N + s.partial);
  w.convolution("mask.mask_output", s.N, s.B);
  for (std::size_t b = 0; b < s.dilations.size(); ++b) {
    const std::string name = "mask.blocks." + std::to_string(b);
    w.add(name + ".prelu_1", {1}, 0.05f, 0.25f);
    w.add(name + ".prelu_2", {1}, 0.05f, 0.25f);
    w.norm(name + ".norm_1", s.H);
    w.norm(name + ".norm_2", s.H);
    w.convolution(name + ".conv1d", s.H, s.B);
    w.add(name + ".dconv1d", {s.instruments, s.H, 3}, 0.5f);
    w.convolution(name + ".skip_out", s.B, s.H);
    if (b + 1 < s.dilations.size()) {
      w.convolution(name + ".res_out", s.B, s.H);
      w.add(name + ".res_out.bias", {s.instruments, s.B}, 0.1f);
    }
  }
  return w;
}

std::vector<float> noise(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<float> v(count);
  for (float& x : v) x = std::normal_distribution<float>()(random);
  return v;
}

// Allocates at cache lines: passes write whole ones past the caches.
template <class T>
struct Lines {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};
  Lines() = default;
  template <class U>
  Lines(const Lines<U>&) {}
  T* allocate(std::size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* memory, std::size_t) { ::operator delete(memory, kLine); }
  bool operator==(const Lines&) const { return true; }
  bool operator!=(const Lines&) const { return false; }
};
using Bytes = std::vector<char, Lines<char>>;

// Gradients of the same shapes as the weights, in rows and columns of multiples of kChannels where they are padded.
struct Gradients {
  std::map<std::string, std::vector<float>> values;
  Arrays<float> arrays;

  float* add(const std::string& name, const std::vector<std::int64_t>& shape) {
    std::int64_t count = 1;
    for (const std::int64_t n : shape) count *= n;
    std::vector<float>& v = values[name];
    v.assign(count, 0.0f);
    arrays[name] = {v.data(), shape};
    return v.data();
  }
};

// All results of all jobs, forward and backward, one after the other. Inputs come without padding, so that reading
// beyond the last one is caught.
std::vector<float> run(const Stage& stage, const Weights& weights, std::int64_t n, std::int64_t samples, bool own,
                       int threads) {
  const StageSizes& s = stage.sizes();
  const std::int64_t frames = samples / s.W, ld = stage.latent_ld(), mel_frames = 3, units = n * s.instruments;
  const std::size_t size = stage.stores_bfloat16() ? 2 : 4;
  const bool bfloat16 = stage.stores_bfloat16();
  std::vector<float> results;
  const auto keep = [&](const std::vector<float>& v) { results.insert(results.end(), v.begin(), v.end()); };
  // The channels of frames by channels, without what pads them.
  const auto keep_latent = [&](const Bytes& bytes, std::int64_t rows, std::int64_t ld_rows, int channels) {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (int c = 0; c < channels; ++c) {
        const char* at = bytes.data() + (r * ld_rows + c) * size;
        std::uint32_t bits = 0;
        std::memcpy(bfloat16 ? reinterpret_cast<char*>(&bits) + 2 : reinterpret_cast<char*>(&bits), at, size);
        float value;
        std::memcpy(&value, &bits, sizeof value);
        results.push_back(value);
      }
    }
  };
  Gradients gradients;

  const std::vector<float> signal = noise(n * samples, 1), mel = noise(n * mel_frames * ld, 2);
  Bytes latent(n * frames * ld * size), kept_encoder(stage.kept_encoder(n, frames));
  stage.encode(signal.data(), n, samples, samples, mel.data(), mel_frames, latent.data(), kept_encoder.data(), threads);
  keep_latent(latent, n * frames, ld, s.N);

  const std::vector<float> given = noise(n * frames * s.N, 5);
  std::vector<float> mel_gradient(n * mel_frames * ld), signal_gradient(n * samples);
  EncodeCall encode{};
  encode.n = n;
  encode.samples = samples;
  encode.mel_frames = mel_frames;
  encode.signal = signal.data();
  encode.gradient = {given.data(), s.N, s.N, false};
  encode.gradient_item = frames * s.N;
  encode.kept = kept_encoder.data();
  encode.mel_gradient = mel_gradient.data();
  encode.signal_gradient = signal_gradient.data();
  encode.gradients = {gradients.add("bank", {padded(s.bank()), padded(s.longest())}),
                      gradients.add("bottleneck_1", {padded(s.N), padded(s.bank())}),
                      gradients.add("bottleneck_2", {padded(s.N), padded(s.N)})};
  stage.encode_gradient(encode, threads);
  keep(mel_gradient);
  keep(signal_gradient);

  const std::vector<float> partial = noise(units * frames * s.partial, 3), inputs = noise(units * frames * s.N, 6);
  const Latents shared{{latent.data(), ld, s.N, bfloat16}, frames * ld, 0};
  const Latents input =
      own ? Latents{{inputs.data(), s.N, s.N, false}, s.instruments * frames * s.N, frames * s.N} : shared;
  const Latents previous =
      s.partial ? Latents{{partial.data(), s.partial, s.partial, false}, s.instruments * frames * s.partial,
                          frames * s.partial}
                : Latents{};
  Bytes masked(units * frames * ld * size), kept_mask(stage.kept_mask(n, frames));
  stage.mask(n, frames, shared, input, previous, masked.data(), kept_mask.data(), threads);
  keep_latent(masked, units * frames, ld, s.N);

  const std::vector<float> given_masked = noise(units * frames * s.N, 7);
  std::vector<float, Lines<float>> latent_gradient(n * frames * ld);
  Bytes own_gradient(units * frames * ld * size), partial_gradient(units * frames * padded(s.partial) * size);
  Gradients weight_gradients;
  for (const auto& [name, array] : weights.arrays) {
    if (name.rfind("mask.", 0) == 0) weight_gradients.add(name, array.shape);
  }
  MaskCall mask{};
  mask.n = n;
  mask.frames = frames;
  mask.latent = shared;
  mask.input = input;
  mask.partial = previous;
  mask.kept = kept_mask.data();
  mask.gradient = {{given_masked.data(), s.N, s.N, false}, s.instruments * frames * s.N, frames * s.N};
  mask.latent_gradient = latent_gradient.data();
  mask.own_gradient = own ? own_gradient.data() : nullptr;
  mask.partial_gradient = s.partial ? partial_gradient.data() : nullptr;
  stage.mask_gradient(mask, mask_tensors(s, weight_gradients.arrays), threads);
  for (std::int64_t r = 0; r < n * frames; ++r)
    results.insert(results.end(), latent_gradient.begin() + r * ld, latent_gradient.begin() + r * ld + s.N);
  if (own) keep_latent(own_gradient, units * frames, ld, s.N);
  if (s.partial) keep_latent(partial_gradient, units * frames, padded(s.partial), s.partial);
  for (const auto& [name, values] : weight_gradients.values) keep(values);

  std::vector<float> decoded(units * frames * s.W);
  Bytes kept_decoder(stage.kept_decoder(units, frames)), decoder_gradient(units * frames * ld * size);
  DecodeCall decode{};
  decode.n = units;
  decode.frames = frames;
  decode.latent = {inputs.data(), s.N, s.N, false};
  decode.latent_item = frames * s.N;
  stage.decode(units, frames, decode.latent, decode.latent_item, decoded.data(), kept_decoder.data(), threads);
  keep(decoded);
  const std::vector<float> given_signal = noise(units * frames * s.W, 8);
  decode.gradient = given_signal.data();
  decode.kept = kept_decoder.data();
  decode.latent_gradient = decoder_gradient.data();
  decode.gradients = {gradients.add("expansion", {padded(s.N), padded(s.wide())}),
                      gradients.add("filters", {padded(s.wide()), padded(s.longest())})};
  stage.decode_gradient(decode, threads);
  keep_latent(decoder_gradient, units * frames, ld, s.N);
  const std::pair<const char*, std::pair<int, int>> matrices[] = {
      {"bottleneck_1", {s.N, s.bank()}}, {"bottleneck_2", {s.N, s.N}}, {"expansion", {s.N, s.wide()}}};
  for (const auto& [name, shape] : matrices) {
    const std::vector<float>& v = gradients.values[name];
    for (int r = 0; r < shape.first; ++r) {
      const auto row = v.begin() + static_cast<std::ptrdiff_t>(r) * padded(shape.second);
      results.insert(results.end(), row, row + shape.second);
    }
  }
  const auto keep_taps = [&](const char* name, int row, Taps taps) {
    const auto at = gradients.values[name].begin() + static_cast<std::ptrdiff_t>(row) * padded(s.longest());
    results.insert(results.end(), at + taps.begin, at + taps.end);
  };
  for (int o = 0; o < s.bank(); ++o) keep_taps("bank", o, taps_of(s, o / (s.N / 4)));
  for (int c = 0; c < s.wide(); ++c) keep_taps("filters", c, decoder_taps(s, c));
  return results;
}

// The same of the cosine losses and of generated layers.
std::vector<float> run_the_rest(const Kernels& kernels, bool bfloat16, int instruments, std::int64_t frames, int channels,
                                bool carried, int threads) {
  std::vector<float> results;
  const auto keep = [&](const std::vector<float>& v) { results.insert(results.end(), v.begin(), v.end()); };
  const std::int64_t items = 3;
  const std::vector<float> latents = noise(items * instruments * frames * channels, 9);
  std::vector<float> sounds(static_cast<std::size_t>(items) * instruments, 1.0f);
  sounds.back() = 0.0f;
  const CosineCall call{items, frames, instruments, carried,
                        {{latents.data(), channels, channels, false}, instruments * frames * channels, frames * channels},
                        sounds.data()};
  const CosineSums sums = cosine_sums(kernels, call, threads);
  keep({static_cast<float>(sums.pairs), static_cast<float>(sums.neighbours)});
  const int ld = padded(channels);
  Bytes gradient(items * instruments * frames * ld * (bfloat16 ? 2 : 4));
  cosine_gradient(kernels, call, {0.5, 0.25}, bfloat16, gradient.data(), threads);
  for (std::int64_t r = 0; !bfloat16 && r < items * instruments * frames; ++r) {
    const float* row = reinterpret_cast<const float*>(gradient.data()) + r * ld;
    results.insert(results.end(), row, row + channels);
  }

  const int width = 5;
  const std::int64_t outputs = 40 * frames;
  const std::vector<float> hidden = noise(width * instruments, 10), kernel = noise(outputs * width, 11);
  const std::vector<float> bias = noise(outputs, 12);
  std::vector<float> out(instruments * outputs), kernel_gradient(outputs * width), bias_gradient(outputs);
  std::vector<float> hidden_gradient(width * instruments);
  const std::vector<GeneratedLayer> layers = {{outputs, hidden.data(), kernel.data(), bias.data(), out.data(),
                                               kernel_gradient.data(), bias_gradient.data(), hidden_gradient.data()}};
  expand(kernels, layers, instruments, width, threads);
  expand_gradient(kernels, layers, instruments, width, threads);
  for (const auto* values : {&out, &kernel_gradient, &bias_gradient, &hidden_gradient}) keep(*values);
  return results;
}

double difference(const std::vector<float>& a, const std::vector<float>& b) {
  double error = 0.0, power = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    error += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
    power += static_cast<double>(b[i]) * b[i];
  }
  return std::sqrt(error / power);
}

}  // namespace

int main() {
  const StageSizes sizes[] = {
      {1, 0, 8, 7, 8, 16, 0, {7}, {4}, {1}},
      {4, 4, 24, 20, 40, 24, 0, {20, 40, 80}, {12, 6, 3}, {1, 2, 4, 1}},
      {3, 2, 40, 10, 16, 8, 20, {12, 24}, {20, 10}, {1, 64}},
      {4, 0, 8, 10, 8, 8, 400, {12}, {10}, {1}},  // a sum longer than a block of the products
  };
  bool good = true;
  for (const StageSizes& s : sizes) {
    const Weights weights = random_weights(s);
    for (const bool bfloat16 : {false, true}) {
      std::vector<float> expected;
      for (const std::string& isa : usable_isas()) {
        const Stage stage(kernels_for(isa), bfloat16, s, weights.arrays, true, std::make_shared<MemoryPool>(), 2);
        for (const std::int64_t frames : {1, 13, 205}) {
          const std::int64_t samples = frames * s.W + s.W / 2;
          const bool own = frames == 13;
          const auto run_all = [&](int threads) {
            std::vector<float> found = run(stage, weights, 2, samples, own, threads);
            const std::vector<float> rest =
                run_the_rest(kernels_for(isa), bfloat16, s.instruments, frames, s.N + 3, own, threads);
            found.insert(found.end(), rest.begin(), rest.end());
            return found;
          };
          const std::vector<float> one = run_all(1);
          for (const int threads : {3, 9}) {
            const std::vector<float> more = run_all(threads);
            if (more.size() != one.size() || std::memcmp(more.data(), one.data(), one.size() * sizeof(float)) != 0) {
              std::printf("%s, N=%d, %d frames: %d threads change the results\n", isa.c_str(), s.N,
                          static_cast<int>(frames), threads);
              good = false;
            }
          }
          if (frames != 205) continue;
          if (expected.empty()) expected = one;
          const double error = difference(one, expected);
          if (!(error < (bfloat16 ? 5e-2 : 1e-4))) {
            std::printf("%s, N=%d: differs from %s by %g\n", isa.c_str(), s.N, usable_isas()[0].c_str(), error);
            good = false;
          }
        }
      }
    }
  }
  std::printf("instruction sets run: %zu\n", usable_isas().size());
  return good ? 0 : 1;
}
