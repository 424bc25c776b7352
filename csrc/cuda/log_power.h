// The spectrogram branch up to the logarithm: window, real FFT, power, log, minus the stored mean.
//
//   y[n, f, k] = log10( |sum_j w[j] x[n, 256 K f + j - 512 K] e^(-2 pi i j k / n_fft)|^2 + 1e-8 ) - mean[k]
//
// Frames are centred, the signal is reflected at its ends. A real frame of n_fft samples is a complex one of half the
// length (even samples real, odd imaginary), transformed in shared memory by radix-2 passes that sort as they go
// (Stockham), then split. In float64 up to the power: log10(1e-8 + .) amplifies the errors made before it, and at 31
// frames a second it costs next to nothing.
// Bytes per frame: n_fft samples, of which three quarters come from the cache, and n_fft / 2 + 1 results.
// Source: original model/spectrogram.py; Cochran et al. 1967 (the split), Stockham as in Van Loan 1992, section 1.7.
#pragma once

#include "cuda/block.h"

namespace metatasnet::METATASNET_DEVICES {

struct Complex {
  double re, im;
};

constexpr double kFloor = 1e-8;  // added to the power

struct LogPowerArgs {
  std::int64_t samples;
  const float* signal;  // (items, samples)
  int n_fft, hop;
  const float* window;      // (n_fft)
  const Complex* twiddles;  // (n_fft / 2): e^(-2 pi i k / n_fft)
  const float* mean;        // (n_fft / 2 + 1)
  std::int64_t frames;
  int ld;
  float* out;  // (items, frames, ld), zeros after the last bin
};

inline std::size_t log_power_shared_bytes(int n_fft) { return sizeof(Complex) * n_fft; }

METATASNET_DEVICE Complex times(Complex a, Complex b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }

// The two inputs of butterfly `i`, of points / 2, in a radix-2 transform of `points` points at pass width `span`, a power of
// two.
struct Butterfly {
  int first, second;  // read from
  int sum, difference;  // written to
  int twiddle;  // power of e^(-2 pi i / points) by which the difference is multiplied
};

METATASNET_DEVICE Butterfly butterfly(int i, int span, int points) {
  const int twiddle = i & ~(span - 1), sum = i + twiddle;
  return {i, i + points / 2, sum, sum + span, twiddle};
}

// Grid: frames, 1, items.
struct LogPower {
  using Args = LogPowerArgs;
  static constexpr int threads = 256;
  static constexpr int blocks = 2;

  static METATASNET_DEVICE void run(Block& block, const Args& args) {
    const int points = args.n_fft / 2;
    auto* from = reinterpret_cast<Complex*>(block.shared());
    Complex* to = from + points;
    const float* signal = args.signal + block.z() * args.samples;
    const std::int64_t first = static_cast<std::int64_t>(block.x()) * args.hop - points;
    for (int j = block.thread(); j < points; j += threads) {
      const double even = signal[reflected(first + 2 * j, args.samples)];
      const double odd = signal[reflected(first + 2 * j + 1, args.samples)];
      from[j] = {args.window[2 * j] * even, args.window[2 * j + 1] * odd};
    }
    for (int span = 1; span < points; span *= 2) {
      block.sync();
      for (int i = block.thread(); i < points / 2; i += threads) {
        const Butterfly b = butterfly(i, span, points);
        const Complex x = from[b.first], y = from[b.second];
        to[b.sum] = {x.re + y.re, x.im + y.im};
        to[b.difference] = times({x.re - y.re, x.im - y.im}, args.twiddles[2 * b.twiddle]);
      }
      Complex* const other = from;
      from = to;
      to = other;
    }
    block.sync();
    float* out = args.out + (block.z() * args.frames + block.x()) * args.ld;
    for (int k = block.thread(); k < args.ld; k += threads) {
      if (k > points) {
        out[k] = 0.0f;
        continue;
      }
      // X[k] = even[k] + e^(-2 pi i k / n_fft) odd[k], from Z = even + i odd; at k = points the factor is -1.
      const Complex z = from[k & (points - 1)], mirror = from[(points - k) & (points - 1)];
      const Complex even = {0.5 * (z.re + mirror.re), 0.5 * (z.im - mirror.im)};
      const Complex odd = {0.5 * (z.im + mirror.im), 0.5 * (mirror.re - z.re)};
      const Complex turned = k < points ? times(args.twiddles[k], odd) : Complex{-odd.re, -odd.im};
      const double re = even.re + turned.re, im = even.im + turned.im;
      out[k] = log10f(static_cast<float>(re * re + im * im + kFloor)) - args.mean[k];
    }
  }

  static METATASNET_DEVICE std::int64_t reflected(std::int64_t sample, std::int64_t samples) {
    if (sample < 0) return -sample;
    return sample < samples ? sample : 2 * (samples - 1) - sample;
  }
};

}  // namespace metatasnet::METATASNET_DEVICES
