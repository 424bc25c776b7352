// Second half of a TCN block: dilated depthwise convolution of the normalised signal, PReLU, moments.
//
//   y[t, c] = prelu( sum over taps k with 0 <= t + (k - 1) d < T of  taps[k, c] a[t + (k - 1) d, c] + shift[k, c] )
//
// The original pads after the norm, so a tap outside the signal drops out together with its share of the shift.
// Bytes: a once, y once (the other taps' rows are still in the cache). FLOPs: 6 per value. Bound by memory traffic.
// Source: original model/mask_tcn.py, TCNLayer (norm_1, dconv1d, prelu_2, the statistics of norm_2).
#include "cpu/isa/modes.h"
#include "cpu/isa/moments.h"

namespace metatasnet::METATASNET_ISA {
namespace {

constexpr int kAhead =
    16;  // frames to prefetch ahead: each row of a panel is a line or two, too sparse for the hardware

// The weights of one panel of channels.
struct Column {
  Vec tap[3][kVectors], shift[3][kVectors];
};

template <class T>
struct Tile {
  const DepthwiseArgs& args;
  int column;
  Column w;
  Vec slope;
  ColumnMoments moments;

  // Frames [from, to) for which the left and the right tap are in range or not.
  template <bool kLeft, bool kRight>
  METATASNET_INLINE void rows(std::int64_t from, std::int64_t to) {
    if (from >= to) return;
    Vec constant[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      constant[v] = w.shift[1][v];
      if (kLeft) constant[v] += w.shift[0][v];
      if (kRight) constant[v] += w.shift[2][v];
    }
    const std::ptrdiff_t ld = args.ld, reach = ld * args.dilation;
    const T* in = static_cast<const T*>(args.in) + from * ld + column;
    T* out = static_cast<T*>(args.out) + from * ld + column;
    for (std::int64_t t = from; t < to; ++t, in += ld, out += ld) {
      for (std::size_t line = 0; line < kPanel * sizeof(T); line += 64) {
        __builtin_prefetch(reinterpret_cast<const char*>(in + reach + kAhead * ld) + line, 0);
        __builtin_prefetch(reinterpret_cast<const char*>(out + kAhead * ld) + line, 1);
      }
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const T* at = in + v * kLanes;
        Vec y = load(at) * w.tap[1][v] + constant[v];
        if (kLeft) y = load(at - reach) * w.tap[0][v] + y;
        if (kRight) y = load(at + reach) * w.tap[2][v] + y;
        y = store_rounded(out + v * kLanes, prelu(y, slope));
        if (t == args.first) moments.pivot[v] = y;
        moments.add(v, y);
      }
    }
  }
};

METATASNET_INLINE std::int64_t clamp(std::int64_t x, std::int64_t low, std::int64_t high) {
  return x < low ? low : x > high ? high : x;
}

}  // namespace

template <class Mode>
void depthwise(const DepthwiseArgs& a) {
  const std::int64_t first = a.first, last = first + a.rows, reach = a.dilation;
  const int width = padded(a.channels);
  // Below `left` the left tap is out of range, from `right` on the right one.
  const std::int64_t left = clamp(reach, first, last), right = clamp(a.frames - reach, first, last);
  for (int column = 0; column < a.channels; column += kPanel) {
    Tile<typename Mode::Storage> tile{a, column, {}, splat(a.slope), {}};
    for (int k = 0; k < 3; ++k) {
      for (int v = 0; v < kVectors; ++v) {
        tile.w.tap[k][v] = load(a.taps + k * width + column + v * kLanes);
        tile.w.shift[k][v] = load(a.shift + k * width + column + v * kLanes);
      }
    }
    tile.moments.begin();
    if (left <= right) {
      tile.template rows<false, true>(first, left);
      tile.template rows<true, true>(left, right);
      tile.template rows<true, false>(right, last);
    } else {
      tile.template rows<false, true>(first, right);
      tile.template rows<false, false>(right, left);
      tile.template rows<true, false>(left, last);
    }
    tile.moments.end(a.moments, column, a.rows);
  }
}

METATASNET_INSTANTIATE(depthwise, DepthwiseArgs)

}  // namespace metatasnet::METATASNET_ISA
