// Second half of a TCN block: dilated depthwise convolution of the normalised signal, PReLU, moments.
//
//   y[t, c] = prelu( sum over taps k with 0 <= t + (k - 1) d < T of  taps[k, c] a[t + (k - 1) d, c] + shift[k, c] )
//
// The original pads after the norm, so a tap outside the signal drops out together with its share of the shift.
// Bytes: a once, y once (the other taps' rows are still in the cache). FLOPs: 6 per value. Bound by memory traffic.
// Source: original model/mask_tcn.py, TCNLayer (norm_1, dconv1d, prelu_2, the statistics of norm_2).
#include "cpu/isa/modes.h"
#include "cpu/isa/moments.h"
#include "cpu/isa/regions.h"

namespace metatasnet::METATASNET_ISA {
namespace {

constexpr int kAhead =
    16;  // frames to prefetch ahead: each row of a panel is a line or two, too sparse for the hardware

}  // namespace

template <class Mode>
void depthwise(const DepthwiseArgs& a) {
  using T = typename Mode::Storage;
  const int width = padded(a.channels);
  const Vec slope = splat(a.slope);
  const std::ptrdiff_t ld = a.ld, reach = ld * a.dilation;
  for (int column = 0; column < a.channels; column += kPanel) {
    Vec tap[3][kVectors], shift[3][kVectors];
    for (int k = 0; k < 3; ++k) {
      for (int v = 0; v < kVectors; ++v) {
        tap[k][v] = load(a.taps + k * width + column + v * kLanes);
        shift[k][v] = load(a.shift + k * width + column + v * kLanes);
      }
    }
    ColumnMoments moments;
    moments.begin();
    const T* signal = static_cast<const T*>(a.in) + column;
    T* result = static_cast<T*>(a.out) + column;
    T* kept = a.kept ? static_cast<T*>(a.kept) + column : nullptr;
    each_frame(a.first, a.rows, a.frames, a.dilation, [&](auto earlier, auto later, std::int64_t t)
                                                          METATASNET_INLINE_LAMBDA {
      const T* in = signal + t * ld;
      T* out = result + t * ld;
      for (std::size_t line = 0; line < kPanel * sizeof(T); line += 64) {
        __builtin_prefetch(reinterpret_cast<const char*>(in + reach + kAhead * ld) + line, 0);
        __builtin_prefetch(reinterpret_cast<const char*>(out + kAhead * ld) + line, 1);
      }
      Vec before[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const T* at = in + v * kLanes;
        Vec constant = shift[1][v];
        if (earlier()) constant += shift[0][v];
        if (later()) constant += shift[2][v];
        Vec y = load(at) * tap[1][v] + constant;
        if (earlier()) y = load(at - reach) * tap[0][v] + y;
        if (later()) y = load(at + reach) * tap[2][v] + y;
        if (kept) y = as_stored<T>(y);
        before[v] = y;
        y = store_rounded(out + v * kLanes, prelu(y, slope));
        if (t == a.first) moments.pivot[v] = y;
        moments.add(v, y);
      }
      if (kept) stream(kept + t * ld, before);
    });
    moments.end(a.moments, column, a.rows);
    if (kept) stream_end();
  }
}

METATASNET_INSTANTIATE(depthwise, DepthwiseArgs)

}  // namespace metatasnet::METATASNET_ISA
