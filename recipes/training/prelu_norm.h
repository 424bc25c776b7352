// PReLU and group norm over the frames of one pair of instrument and item, (T, C), forward and backward.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "scalar.h"

namespace recipe {

constexpr int GROUPS = 8;
constexpr int CHUNK = 64;
constexpr double EPSILON = 1e-8;

using Floats = std::vector<float>;

// Per channel, over time: sum of f and of f * g, where `value(t, c)` gives f and g.
struct Sums {
  std::vector<double> first, second;
  Floats a, b;
  explicit Sums(int64_t C) : first(C), second(C), a(C), b(C) {}

  template <typename Row>
  void over(int64_t T, int64_t C, Row row) {
    std::fill(first.begin(), first.end(), 0.0);
    std::fill(second.begin(), second.end(), 0.0);
    for (int64_t begin = 0; begin < T; begin += CHUNK) {
      std::fill(a.begin(), a.end(), 0.f);
      std::fill(b.begin(), b.end(), 0.f);
      const int64_t end = std::min(T, begin + CHUNK);
      for (int64_t t = begin; t < end; ++t) row(t, a.data(), b.data());
      for (int64_t c = 0; c < C; ++c) {
        first[c] += a[c];
        second[c] += b[c];
      }
    }
  }
};

// mean and 1 / deviation of each group, from sums of p and p^2.
inline void moments(const Sums& sums, int64_t T, int64_t C, float* mean, float* rstd) {
  const int64_t width = C / GROUPS;
  for (int64_t g = 0; g < GROUPS; ++g) {
    double s = 0, q = 0;
    for (int64_t c = g * width; c < (g + 1) * width; ++c) {
      s += sums.first[c];
      q += sums.second[c];
    }
    const double m = s / (width * T);
    mean[g] = static_cast<float>(m);
    rstd[g] = static_cast<float>(1 / std::sqrt(std::max(0.0, q / (width * T) - m * m) + EPSILON));
  }
}

// y = scale p + shift is the norm.
inline void affine(const float* mean, const float* rstd, const float* gamma, const float* beta, int64_t C, Floats& scale,
                   Floats& shift) {
  for (int64_t c = 0; c < C; ++c) {
    const int64_t g = c / (C / GROUPS);
    scale[c] = gamma[c] * rstd[g];
    shift[c] = beta[c] - mean[g] * scale[c];
  }
}

// From the sums of dy and dy p: dgamma, dbeta, and dp = k dy + k0 + k1 p.
inline void gradient_of_norm(const Sums& sums, int64_t T, int64_t C, const float* mean, const float* rstd, const float* gamma,
                             float* dgamma, float* dbeta, Floats& k, Floats& k0, Floats& k1) {
  const int64_t width = C / GROUPS;
  for (int64_t g = 0; g < GROUPS; ++g) {
    double plain = 0, normal = 0;
    for (int64_t c = g * width; c < (g + 1) * width; ++c) {
      dbeta[c] = static_cast<float>(sums.first[c]);
      dgamma[c] = static_cast<float>(rstd[g] * (sums.second[c] - mean[g] * sums.first[c]));
      plain += gamma[c] * sums.first[c];
      normal += static_cast<double>(gamma[c]) * dgamma[c];
    }
    const double share = 1.0 / (static_cast<double>(width) * T);
    for (int64_t c = g * width; c < (g + 1) * width; ++c) {
      k[c] = gamma[c] * rstd[g];
      k1[c] = static_cast<float>(-share * rstd[g] * rstd[g] * normal);
      k0[c] = static_cast<float>(-share * rstd[g] * plain) - mean[g] * k1[c];
    }
  }
}

template <typename S>
void prelu_sums(const S* x, float slope, int64_t T, int64_t C, Sums& sums) {
  sums.over(T, C, [=](int64_t t, float* __restrict a, float* __restrict b) {
    const S* __restrict row = x + t * C;
    for (int64_t c = 0; c < C; ++c) {
      const float v = load(row[c]);
      const float p = v > 0 ? v : slope * v;
      a[c] += p;
      b[c] += p * p;
    }
  });
}

// y = norm(prelu(x)) with known scale and shift; S and D may be float or bfloat.
template <typename S, typename D>
void apply_norm(const S* x, float slope, const Floats& scale, const Floats& shift, int64_t T, int64_t C, D* y) {
  const float* __restrict a = scale.data();
  const float* __restrict b = shift.data();
  for (int64_t t = 0; t < T; ++t) {
    const S* __restrict row = x + t * C;
    D* __restrict out = y + t * C;
    for (int64_t c = 0; c < C; ++c) {
      const float v = load(row[c]);
      store(out[c], (v > 0 ? v : slope * v) * a[c] + b[c]);
    }
  }
}

// Sums of dy and dy prelu(x).
template <typename S, typename G>
void gradient_sums(const G* dy, const S* x, float slope, int64_t T, int64_t C, Sums& sums) {
  sums.over(T, C, [=](int64_t t, float* __restrict a, float* __restrict b) {
    const S* __restrict row = x + t * C;
    const G* __restrict g = dy + t * C;
    for (int64_t c = 0; c < C; ++c) {
      const float v = load(row[c]), d = load(g[c]);
      a[c] += d;
      b[c] += d * (v > 0 ? v : slope * v);
    }
  });
}

// dx = prelu'(x) (k dy + k0 + k1 prelu(x)); returns the slope's gradient.
template <typename S, typename G, typename D>
float apply_norm_backward(const G* dy, const S* x, float slope, const Floats& k, const Floats& k0, const Floats& k1, int64_t T,
                          int64_t C, D* dx, Floats& lanes) {
  std::fill(lanes.begin(), lanes.end(), 0.f);
  float* __restrict sum = lanes.data();
  const float* __restrict a = k.data();
  const float* __restrict b0 = k0.data();
  const float* __restrict b1 = k1.data();
  for (int64_t t = 0; t < T; ++t) {
    const S* __restrict row = x + t * C;
    const G* __restrict g = dy + t * C;
    D* __restrict out = dx + t * C;
    for (int64_t c = 0; c < C; ++c) {
      const float v = load(row[c]);
      const float factor = v > 0 ? 1.f : slope;
      const float dp = a[c] * load(g[c]) + b0[c] + b1[c] * factor * v;
      sum[c] += v > 0 ? 0.f : dp * v;
      store(out[c], dp * factor);
    }
  }
  double total = 0;
  for (const float x : lanes) total += x;
  return static_cast<float>(total);
}

}  // namespace recipe
