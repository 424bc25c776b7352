// Runs the CPU kernels of every instruction set without Python, for the sanitizers: small stages of awkward sizes,
// inputs that end where their allocation ends, several numbers of threads. Prints a line and exits 1 where results
// disagree.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/stage.h"

namespace {

using namespace metatasnet;

struct Weights {
  std::map<std::string, std::vector<float>> values;
  Arrays arrays;
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
  int wide = 0;
  for (std::size_t l = 0; l < s.kernel_sizes.size(); ++l) {
    w.add("encoder.filters." + std::to_string(l), {s.N / 4, s.kernel_sizes[l]}, 0.2f);
    w.add("decoder.filters." + std::to_string(l), {s.widths[l], s.kernel_sizes[l]}, 0.2f);
    wide += s.widths[l];
  }
  const int bank = static_cast<int>(s.kernel_sizes.size()) * (s.N / 4);
  w.add("encoder.bottleneck_1", {s.N, bank}, 0.2f);
  w.add("encoder.bottleneck_2", {s.N, s.N}, 0.2f);
  w.add("decoder.bottleneck", {s.N, wide}, 0.2f);
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

// The signal and the masked latent's bytes.
struct Result {
  std::vector<float> signal;
  std::vector<char> masked;
};

Result run(const Stage& stage, std::int64_t n, std::int64_t samples, int threads) {
  const StageSizes& s = stage.sizes();
  const std::int64_t frames = samples / s.W, ld = stage.latent_ld(), mel_frames = 3;
  const std::size_t size = stage.stores_bfloat16() ? 2 : 4;
  const std::vector<float> signal = noise(n * samples, 1), mel = noise(n * mel_frames * ld, 2);
  std::vector<char> latent(n * frames * ld * size);
  stage.encode(signal.data(), n, samples, samples, mel.data(), mel_frames, latent.data(), threads);

  // The previous stage's latents come without padding, so that reading beyond the last one is caught.
  const std::vector<float> partial = noise(n * s.instruments * frames * s.partial, 3);
  const Latents own{{latent.data(), ld, s.N, stage.stores_bfloat16()}, frames * ld, 0};
  const Latents previous{
      {partial.data(), s.partial, s.partial, false}, s.instruments * frames * s.partial, frames * s.partial};
  Result result;
  result.masked.resize(n * s.instruments * frames * ld * size);
  stage.mask(n, frames, own, own, s.partial ? previous : Latents{}, result.masked.data(), threads);

  const std::vector<float> tight = noise(n * frames * s.N, 4);
  result.signal.resize(n * s.instruments * frames * s.W + n * frames * s.W);
  stage.decode(n * s.instruments, frames, {result.masked.data(), ld, s.N, stage.stores_bfloat16()}, frames * ld,
               result.signal.data(), threads);
  stage.decode(n, frames, {tight.data(), s.N, s.N, false}, frames * s.N,
               result.signal.data() + n * s.instruments * frames * s.W, threads);
  return result;
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
      {1, 8, 7, 8, 16, 0, {7}, {4}, {1}},
      {4, 24, 20, 40, 24, 0, {20, 40, 80}, {12, 6, 3}, {1, 2, 4, 1}},
      {3, 40, 10, 16, 8, 20, {12, 24}, {20, 10}, {1, 64}},
      {4, 8, 10, 8, 8, 400, {12}, {10}, {1}},  // a sum longer than a block of the products
  };
  bool good = true;
  for (const StageSizes& s : sizes) {
    const Weights weights = random_weights(s);
    for (const bool bfloat16 : {false, true}) {
      std::vector<float> expected;
      for (const std::string& isa : usable_isas()) {
        const Stage stage(kernels_for(isa), bfloat16, s, weights.arrays);
        for (const std::int64_t frames : {1, 13, 205}) {
          const std::int64_t samples = frames * s.W + s.W / 2;
          const Result one = run(stage, 2, samples, 1);
          for (const int threads : {3, 9}) {
            const Result more = run(stage, 2, samples, threads);
            if (std::memcmp(more.signal.data(), one.signal.data(), one.signal.size() * sizeof(float)) != 0) {
              std::printf("%s, N=%d, %d frames: %d threads change the signal\n", isa.c_str(), s.N,
                          static_cast<int>(frames), threads);
              good = false;
            }
          }
          if (frames != 205) continue;
          if (expected.empty()) expected = one.signal;
          const double error = difference(one.signal, expected);
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
