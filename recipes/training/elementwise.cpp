// What a block of the masking network does between its matrix products, forward and backward, for training on a CPU.
//
// Activations are (4, n, T, C), bfloat16 or float32, channels last. One pair of instrument and item is worked on at a time,
// in float32, so that every pass but the first reads the cache. Sums over time are float32 partial sums of 64 frames, added
// in float64.
//
//     block:  p = prelu(u; s1)   y[t] = GN(p)[t]   v[t] = sum_k w[k] y[t + (k - 1) d]   q = prelu(v; s2)   m = GN(q)
//     norm:   p = prelu(x; s)    y = GN(p)
//     mask:   m_i = softmax over i of z_i          s_i = latent m_i

#include <torch/extension.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "prelu_norm.h"
#include "softmax_mask.h"

namespace recipe {

template <typename S>
S* data(const torch::Tensor& x) {
  TORCH_CHECK(x.is_contiguous() && x.device().is_cpu(), "activations must be contiguous and on the CPU");
  return static_cast<S*>(x.data_ptr());
}

float* floats(const torch::Tensor& x) {
  TORCH_CHECK(x.scalar_type() == torch::kFloat && x.is_contiguous(), "parameters must be contiguous float32");
  return x.data_ptr<float>();
}

#define DISPATCH(x, ...)                                                           \
  if (x.scalar_type() == torch::kBFloat16) {                                       \
    using S = bfloat;                                                              \
    __VA_ARGS__                                                                    \
  } else {                                                                         \
    TORCH_CHECK(x.scalar_type() == torch::kFloat, "float32 or bfloat16 expected"); \
    using S = float;                                                               \
    __VA_ARGS__                                                                    \
  }

using Tensors = std::vector<torch::Tensor>;

torch::Tensor per_pair(const torch::Tensor& x, int64_t last) {
  return torch::empty({x.size(0), x.size(1), last}, torch::kFloat);
}

// y, mean, rstd of x (4, n, T, C); gamma and beta (4, C).
Tensors norm_forward(torch::Tensor x, double slope, torch::Tensor gamma, torch::Tensor beta) {
  const int64_t n = x.size(1), T = x.size(2), C = x.size(3);
  auto y = torch::empty_like(x), mean = per_pair(x, GROUPS), rstd = per_pair(x, GROUPS);
  const float s = static_cast<float>(slope);
  DISPATCH(x, {
    Sums sums(C);
    Floats scale(C), shift(C);
    for (int64_t pair = 0; pair < 4 * n; ++pair) {
      const S* in = data<S>(x) + pair * T * C;
      float *m = floats(mean) + pair * GROUPS, *r = floats(rstd) + pair * GROUPS;
      prelu_sums(in, s, T, C, sums);
      moments(sums, T, C, m, r);
      affine(m, r, floats(gamma) + pair / n * C, floats(beta) + pair / n * C, C, scale, shift);
      apply_norm(in, s, scale, shift, T, C, data<S>(y) + pair * T * C);
    }
  })
  return {y, mean, rstd};
}

// dx, dslope (4, n, 1), dgamma and dbeta (4, n, C).
Tensors norm_backward(torch::Tensor dy, torch::Tensor x, double slope, torch::Tensor gamma, torch::Tensor mean,
                      torch::Tensor rstd) {
  const int64_t n = x.size(1), T = x.size(2), C = x.size(3);
  auto dx = torch::empty_like(x), dslope = per_pair(x, 1), dgamma = per_pair(x, C), dbeta = per_pair(x, C);
  const float s = static_cast<float>(slope);
  DISPATCH(x, {
    Sums sums(C);
    Floats k(C), k0(C), k1(C), lanes(C);
    for (int64_t pair = 0; pair < 4 * n; ++pair) {
      const S* in = data<S>(x) + pair * T * C;
      const S* g = data<S>(dy) + pair * T * C;
      gradient_sums(g, in, s, T, C, sums);
      gradient_of_norm(sums, T, C, floats(mean) + pair * GROUPS, floats(rstd) + pair * GROUPS, floats(gamma) + pair / n * C,
                       floats(dgamma) + pair * C, floats(dbeta) + pair * C, k, k0, k1);
      floats(dslope)[pair] = apply_norm_backward(g, in, s, k, k0, k1, T, C, data<S>(dx) + pair * T * C, lanes);
    }
  })
  return {dx, dslope, dgamma, dbeta};
}

// One frame of the depthwise convolution's gradients: of its input y, of its taps, and the sums that y's norm needs.
// `dv` points `reach` before the frame; the frames out of range are zero.
template <typename S>
inline void taps_backward(const float* __restrict dv, int64_t reach, const S* __restrict u, float slope,
                          const float* __restrict scale, const float* __restrict shift, const float* __restrict w, int64_t C,
                          float* __restrict dy, float* __restrict dw, float* __restrict first, float* __restrict second) {
#pragma GCC ivdep
  for (int64_t c = 0; c < C; ++c) {
    const float before = dv[c], here = dv[c + reach], after = dv[c + 2 * reach];
    const float x = load(u[c]);
    const float p = x > 0 ? x : slope * x;
    const float y = p * scale[c] + shift[c];
    const float grad = w[c] * after + w[C + c] * here + w[2 * C + c] * before;
    dw[c] += after * y;
    dw[C + c] += here * y;
    dw[2 * C + c] += before * y;
    dy[c] = grad;
    first[c] += grad;
    second[c] += grad * p;
  }
}

// One frame of the depthwise convolution, and the sums of q = prelu(v) and q^2. `y` points `reach` before the frame.
template <typename S>
inline void taps_forward(const float* __restrict y, int64_t reach, const float* __restrict w, float slope, int64_t C,
                         S* __restrict v, float* __restrict first, float* __restrict second) {
#pragma GCC ivdep
  for (int64_t c = 0; c < C; ++c) {
    store(v[c], w[c] * y[c] + w[C + c] * y[c + reach] + w[2 * C + c] * y[c + 2 * reach]);
    const float z = load(v[c]);
    const float q = z > 0 ? z : slope * z;
    first[c] += q;
    second[c] += q * q;
  }
}

// m, v, and the two norms' mean and rstd. taps: (4, 3, C).
Tensors block_forward(torch::Tensor u, double slope1, torch::Tensor gamma1, torch::Tensor beta1, torch::Tensor taps, int64_t d,
                      double slope2, torch::Tensor gamma2, torch::Tensor beta2) {
  const int64_t n = u.size(1), T = u.size(2), C = u.size(3);
  auto m = torch::empty_like(u), v = torch::empty_like(u);
  auto mean1 = per_pair(u, GROUPS), rstd1 = per_pair(u, GROUPS), mean2 = per_pair(u, GROUPS), rstd2 = per_pair(u, GROUPS);
  const float s1 = static_cast<float>(slope1), s2 = static_cast<float>(slope2);
  DISPATCH(u, {
    Sums sums(C);
    Floats scale(C), shift(C), y((T + 2 * d) * C, 0.f);
    for (int64_t pair = 0; pair < 4 * n; ++pair) {
      const int64_t i = pair / n;
      const S* in = data<S>(u) + pair * T * C;
      S* mid = data<S>(v) + pair * T * C;
      prelu_sums(in, s1, T, C, sums);
      moments(sums, T, C, floats(mean1) + pair * GROUPS, floats(rstd1) + pair * GROUPS);
      affine(floats(mean1) + pair * GROUPS, floats(rstd1) + pair * GROUPS, floats(gamma1) + i * C, floats(beta1) + i * C, C,
             scale, shift);
      apply_norm(in, s1, scale, shift, T, C, y.data() + d * C);
      sums.over(T, C, [&](int64_t t, float* a, float* b) {
        taps_forward(y.data() + t * C, d * C, floats(taps) + i * 3 * C, s2, C, mid + t * C, a, b);
      });
      moments(sums, T, C, floats(mean2) + pair * GROUPS, floats(rstd2) + pair * GROUPS);
      affine(floats(mean2) + pair * GROUPS, floats(rstd2) + pair * GROUPS, floats(gamma2) + i * C, floats(beta2) + i * C, C,
             scale, shift);
      apply_norm(mid, s2, scale, shift, T, C, data<S>(m) + pair * T * C);
    }
  })
  return {m, v, mean1, rstd1, mean2, rstd2};
}

// du, m (again), and per pair: dslope1, dgamma1, dbeta1, dtaps, dslope2, dgamma2, dbeta2.
Tensors block_backward(torch::Tensor dm, torch::Tensor u, torch::Tensor v, double slope1, torch::Tensor gamma1,
                       torch::Tensor beta1, torch::Tensor mean1, torch::Tensor rstd1, torch::Tensor taps, int64_t d,
                       double slope2, torch::Tensor gamma2, torch::Tensor mean2, torch::Tensor rstd2) {
  const int64_t n = u.size(1), T = u.size(2), C = u.size(3);
  auto du = torch::empty_like(u);
  auto dslope1 = per_pair(u, 1), dgamma1 = per_pair(u, C), dbeta1 = per_pair(u, C), dtaps = per_pair(u, 3 * C);
  auto dslope2 = per_pair(u, 1), dgamma2 = per_pair(u, C), dbeta2 = per_pair(u, C);
  const float s1 = static_cast<float>(slope1), s2 = static_cast<float>(slope2);
  DISPATCH(u, {
    Sums sums(C);
    Floats scale(C), shift(C), k(C), k0(C), k1(C), lanes(C), dv((T + 2 * d) * C, 0.f), dy(T * C);
    for (int64_t pair = 0; pair < 4 * n; ++pair) {
      const int64_t i = pair / n;
      const S* in = data<S>(u) + pair * T * C;
      const S* mid = data<S>(v) + pair * T * C;
      const S* g = data<S>(dm) + pair * T * C;
      const float *mu1 = floats(mean1) + pair * GROUPS, *r1 = floats(rstd1) + pair * GROUPS;
      gradient_sums(g, mid, s2, T, C, sums);
      gradient_of_norm(sums, T, C, floats(mean2) + pair * GROUPS, floats(rstd2) + pair * GROUPS, floats(gamma2) + i * C,
                       floats(dgamma2) + pair * C, floats(dbeta2) + pair * C, k, k0, k1);
      floats(dslope2)[pair] = apply_norm_backward(g, mid, s2, k, k0, k1, T, C, dv.data() + d * C, lanes);

      affine(mu1, r1, floats(gamma1) + i * C, floats(beta1) + i * C, C, scale, shift);
      float* dw = floats(dtaps) + pair * 3 * C;
      std::fill(dw, dw + 3 * C, 0.f);
      sums.over(T, C, [&](int64_t t, float* a, float* b) {
        taps_backward(dv.data() + t * C, d * C, in + t * C, s1, scale.data(), shift.data(), floats(taps) + i * 3 * C, C,
                      dy.data() + t * C, dw, a, b);
      });
      gradient_of_norm(sums, T, C, mu1, r1, floats(gamma1) + i * C, floats(dgamma1) + pair * C, floats(dbeta1) + pair * C, k,
                       k0, k1);
      floats(dslope1)[pair] = apply_norm_backward(dy.data(), in, s1, k, k0, k1, T, C, data<S>(du) + pair * T * C, lanes);
    }
  })
  return {du, dslope1, dgamma1, dbeta1, dtaps, dslope2, dgamma2, dbeta2};
}

template <typename S>
std::array<S*, 4> instruments(const torch::Tensor& x) {
  S* first = data<S>(x);
  const int64_t size = x.numel() / 4;
  return {first, first + size, first + 2 * size, first + 3 * size};
}

// s (4, n, T, N) of z (4, n, T, N) and the latent (n, T, N).
torch::Tensor mask_forward(torch::Tensor z, torch::Tensor latent) {
  auto s = torch::empty_like(z);
  DISPATCH(z, mask_items<S>(instruments<S>(z).data(), data<S>(latent), instruments<S>(s).data(), latent.numel());)
  return s;
}

// dz, dlatent.
Tensors mask_backward(torch::Tensor ds, torch::Tensor z, torch::Tensor latent) {
  auto dz = torch::empty_like(z), dlatent = torch::empty_like(latent);
  DISPATCH(z, mask_items_backward<S>(instruments<S>(z).data(), data<S>(latent), instruments<S>(ds).data(),
                                     instruments<S>(dz).data(), data<S>(dlatent), latent.numel());)
  return {dz, dlatent};
}

}  // namespace recipe

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("norm_forward", &recipe::norm_forward);
  module.def("norm_backward", &recipe::norm_backward);
  module.def("block_forward", &recipe::block_forward);
  module.def("block_backward", &recipe::block_backward);
  module.def("mask_forward", &recipe::mask_forward);
  module.def("mask_backward", &recipe::mask_backward);
}
