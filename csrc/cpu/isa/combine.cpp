// Make the gradients of weights from sums over frames, and merge the tiles' partial sums.
#include "cpu/isa/gradient.h"

namespace metatasnet::METATASNET_ISA {
namespace {

// The first `n` lanes.
METATASNET_INLINE void store_first(float* p, Vec v, int n) {
  if (n >= kLanes) {
    store(p, v);
  } else {
    float lanes[kLanes];
    store(lanes, v);
    __builtin_memcpy(p, lanes, sizeof(float) * static_cast<std::size_t>(n));
  }
}

}  // namespace

// Add up the parts of a weight gradient. If a norm is folded into the weights, also make the gradients of W and of the
// norm's scale and shift. One thread does a whole column, so its sums have a fixed order. Bytes: the parts, W and dW
// once.
void combine(const CombineArgs& a) {
  for (int c = a.first; c < a.last; c += kLanes) {
    const int valid = a.inputs - c;
    const Vec scale = a.scale ? load_first(a.scale + c, valid) : Vec{};
    const Vec shift = a.scale ? load_first(a.shift + c, valid) : Vec{};
    Vec scale_gradient = Vec{}, shift_gradient = Vec{};
    for (int o = 0; o < a.outputs; ++o) {
      const float* part = a.parts + o * a.ld + c;
      Vec sum = load(part);
      for (int i = 1; i < a.count; ++i) sum += load(part + i * a.part);
      const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(o) * a.inputs + c;
      if (a.scale) {
        const Vec w = load_first(a.weights + at, valid);
        scale_gradient += w * sum;
        shift_gradient += w * a.sums[o];
        sum = scale * sum + shift * a.sums[o];
      }
      store_first(a.gradient + at, a.add ? load_first(a.gradient + at, valid) + sum : sum, valid);
    }
    if (!a.scale) continue;
    store(a.scale_gradient + c, load(a.scale_gradient + c) + scale_gradient);
    store(a.shift_gradient + c, load(a.shift_gradient + c) + shift_gradient);
  }
}

void sum_tiles(const SumTilesArgs& a) {
  for (int i = 0; i < a.count; ++i) a.sums[i] = 0.0;
  for (int tile = 0; tile < a.tiles; ++tile) {
    const float* partials = a.partials + static_cast<std::ptrdiff_t>(tile) * a.count;
    for (int i = 0; i < a.count; ++i) a.sums[i] += static_cast<double>(partials[i]);
  }
}

}  // namespace metatasnet::METATASNET_ISA
