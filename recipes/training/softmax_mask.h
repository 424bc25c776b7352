// m_i = softmax over i of z_i, s_i = latent m_i, over the four instruments; forward and backward.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "scalar.h"

namespace recipe {

template <typename S>
inline void softmax(const S* const* z, int64_t c, float* m) {
  float top = load(z[0][c]);
  for (int i = 1; i < 4; ++i) top = std::max(top, load(z[i][c]));
  float sum = 0;
  for (int i = 0; i < 4; ++i) sum += m[i] = std::exp(load(z[i][c]) - top);
  for (int i = 0; i < 4; ++i) m[i] /= sum;
}

template <typename S>
void mask_items(const S* const* z, const S* __restrict latent, S* const* s, int64_t size) {
  const S *z0 = z[0], *z1 = z[1], *z2 = z[2], *z3 = z[3];
  const S* in[4] = {z0, z1, z2, z3};
  S* out[4] = {s[0], s[1], s[2], s[3]};
#pragma GCC ivdep
  for (int64_t c = 0; c < size; ++c) {
    float m[4];
    softmax(in, c, m);
    const float x = load(latent[c]);
    for (int i = 0; i < 4; ++i) store(out[i][c], x * m[i]);
  }
}

template <typename S>
void mask_items_backward(const S* const* z, const S* __restrict latent, const S* const* ds, S* const* dz, S* __restrict dlatent,
                         int64_t size) {
  const S* in[4] = {z[0], z[1], z[2], z[3]};
  const S* grad[4] = {ds[0], ds[1], ds[2], ds[3]};
  S* out[4] = {dz[0], dz[1], dz[2], dz[3]};
#pragma GCC ivdep
  for (int64_t c = 0; c < size; ++c) {
    float m[4];
    softmax(in, c, m);
    const float x = load(latent[c]);
    float total = 0;
    for (int i = 0; i < 4; ++i) total += load(grad[i][c]) * m[i];
    store(dlatent[c], total);
    for (int i = 0; i < 4; ++i) store(out[i][c], x * m[i] * (load(grad[i][c]) - total));
  }
}

}  // namespace recipe
