// The cosine losses between encoded sources, forward and backward, frame by frame: a frame's rows stay in the caches.
//
//   d = x m / f, f = max(|x|, 1e-8);  pairs = sum over items, i < j of |d_i| |d_j|;  neighbours = sum of d d_before
//
//   dx = G m / f - x (d G) / f^2 where |x| >= 1e-8;  G = p sign(d) (sum_j |d_j| - |d|) + q (d_before + d_behind)
//
// Source: Samuel et al. 2020, section 2.4; original utility/loss.py.
#include "cpu/isa/source.h"

namespace metatasnet::METATASNET_ISA {
namespace {

constexpr float kShortest = 1e-8f;

METATASNET_INLINE float sum_lanes(Vec v) {
  float lanes[kLanes];
  store(lanes, v);
  float sum = 0.0f;
  for (int i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}

METATASNET_INLINE Vec magnitude(Vec v) { return (Vec)((UVec)v & 0x7fffffffu); }

METATASNET_INLINE float longest_of(float norm) { return norm < kShortest ? kShortest : norm; }  // a NaN stays one

// Rows come as (item, instrument). Items before `carried` only serve as neighbours of others.
METATASNET_INLINE int before(const CosineArgs& a, int item) { return item ? item - 1 : a.carried ? -1 : a.items - 1; }
METATASNET_INLINE int behind(const CosineArgs& a, int item) {
  return item + 1 < a.items ? item + 1 : a.carried ? -1 : 0;
}

// Lengths of a frame's rows, and m / f.
METATASNET_INLINE void lengths(const CosineArgs& a, std::int64_t frame, float* norms, float* factors) {
  for (int row = 0; row < a.items * a.instruments; ++row) {
    Vec squares = Vec{};
    visit_frame(a.rows[row], frame, [&](int, Vec x) { squares += x * x; });
    norms[row] = __builtin_sqrtf(sum_lanes(squares));
    factors[row] = a.mask[row] / longest_of(norms[row]);
  }
}

}  // namespace

// FLOPs per frame, item and channel: I (2 + 4 + 2); bytes: the latents once.
void cosines(const CosineArgs& a) {
  double pairs = 0.0, neighbours = 0.0;
  for (std::int64_t frame = a.first; frame < a.last; ++frame) {
    lengths(a, frame, a.norms, a.factors);
    for (int item = a.carried; item < a.items; ++item) {
      const int first = item * a.instruments, other = before(a, item) * a.instruments;
      Vec with_others = Vec{}, with_neighbours = Vec{};
      for (int c = 0; c < a.channels; c += kLanes) {
        Vec together = Vec{};
        for (int i = 0; i < a.instruments; ++i) {
          const Vec d = load_columns(a.rows[first + i], frame, c) * a.factors[first + i];
          with_others += magnitude(d) * together;
          together += magnitude(d);
          if (other >= 0) with_neighbours += d * (load_columns(a.rows[other + i], frame, c) * a.factors[other + i]);
        }
      }
      pairs += static_cast<double>(sum_lanes(with_others));
      neighbours += static_cast<double>(sum_lanes(with_neighbours));
    }
  }
  a.sums[0] = pairs;
  a.sums[1] = neighbours;
}

// Reads the latents three times, two of them from the caches, and writes their gradient.
template <class Mode>
void cosines_gradient(const CosineArgs& a) {
  using Storage = typename Mode::Storage;
  const Vec on_pairs = splat(a.on_pairs), on_neighbours = splat(a.on_neighbours);
  for (std::int64_t frame = a.first; frame < a.last; ++frame) {
    lengths(a, frame, a.norms, a.factors);
    for (int item = 0; item < a.items; ++item) {
      const int first = item * a.instruments;
      const int earlier = before(a, item) * a.instruments, later = behind(a, item) * a.instruments;
      const bool own = item >= a.carried;
      Vec products[kMostInstruments] = {};
      for (int c = 0; c < a.channels; c += kLanes) {
        Vec d[kMostInstruments], together = Vec{};
        for (int i = 0; i < a.instruments; ++i) {
          d[i] = load_columns(a.rows[first + i], frame, c) * a.factors[first + i];
          together += magnitude(d[i]);
        }
        for (int i = 0; i < a.instruments; ++i) {
          Vec along = Vec{}, gradient = Vec{};
          if (earlier >= 0) along += load_columns(a.rows[earlier + i], frame, c) * a.factors[earlier + i];
          if (later >= 0) along += load_columns(a.rows[later + i], frame, c) * a.factors[later + i];
          if (own) {
            const Vec others = on_pairs * (together - magnitude(d[i]));
            gradient = select(d[i] > Vec{}, others, select(d[i] < Vec{}, Vec{} - others, Vec{}));
          }
          gradient += on_neighbours * along;
          store(a.scratch + static_cast<std::ptrdiff_t>(i) * a.ld + c, gradient);
          products[i] += d[i] * gradient;
        }
      }
      for (int i = 0; i < a.instruments; ++i) {
        const int row = first + i;
        const float length = longest_of(a.norms[row]);
        const Vec radial = splat(a.norms[row] < kShortest ? 0.0f : sum_lanes(products[i]) / length / length);
        const Vec factor = splat(a.factors[row]);
        auto* out = static_cast<Storage*>(a.gradient) + (static_cast<std::int64_t>(row) * a.frames + frame) * a.ld;
        const float* direct = a.scratch + static_cast<std::ptrdiff_t>(i) * a.ld;
        for (int c = 0; c < a.channels; c += kPanel) {
          Vec gradient[kVectors];
          for (int v = 0; v < kVectors; ++v) {
            const int column = c + v * kLanes;
            gradient[v] = load(direct + column) * factor - radial * load_columns(a.rows[row], frame, column);
          }
          stream(out + c, gradient);
        }
      }
    }
  }
  stream_end();
}

METATASNET_INSTANTIATE(cosines_gradient, CosineArgs)

}  // namespace metatasnet::METATASNET_ISA
