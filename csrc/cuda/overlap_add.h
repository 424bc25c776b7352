// The decoder's transposed filters: a product into overlapping frames that are added while they are on chip.
//
//   frame[u, t, j] = sum_c F[j, c] h[u, t, c]                             for j < window, the longest filter
//   signal[u, s] = sum over t of frame[u, t, s + padding - t stride]
//
// A block has the frames that reach into its samples (the first `reach` of them are computed by its neighbour as well)
// and adds each stride-wide part of them in turn, so no sample is written twice at once. The first tile of taps is the middle of the
// window, and what is stored after it are the outer taps, which only the longest filters have: their products begin at those filters'
// inputs. Bytes per unit: T C read, T stride written; the frames never leave the chip. FLOPs: 2 T (160 C + (window - 160) C') with C'
// inputs of the filters of more than 160 taps. Source: Samuel et al. 2020, section 2.3; original model/decoder.py.
//
// OverlapAddWgmma multiplies by wgmma, two tiles of slots in a cluster, and fits twice on a multiprocessor of an H100 for strides
// up to 80.
#pragma once

#include "cuda/wgmma.h"

namespace metatasnet::METATASNET_DEVICES {

METATASNET_BOTH inline int reach_of(int window, int stride) { return (window + stride - 1) / stride - 1; }

// The overlapping frames of a block, and the samples [slots][stride] on chip to which they are added.
struct Overlapping {
  std::int64_t frames;
  int window, stride, padding;
  int turn;       // tap that is stored first; after the window's last tap comes its first
  int outer;      // the first input, a multiple of 64, that has taps beyond the first tile of them
  float* signal;  // (units, frames * stride)

  METATASNET_DEVICE int parts() const { return reach_of(window, stride) + 1; }
  METATASNET_DEVICE int slots() const { return kTile - (parts() - 1); }
  METATASNET_DEVICE std::int64_t first_slot(const Block& block) const { return std::int64_t{block.x()} * slots(); }
  METATASNET_DEVICE std::int64_t first_frame(const Block& block) const { return first_slot(block) - (parts() - 1); }

  template <int threads>
  METATASNET_DEVICE void begin(const Block& block, float* samples) const {
    for (int i = block.thread(); i < slots() * stride; i += threads) samples[i] = 0.0f;
  }

  // Adds the taps that are stored from `column` on, of the tile's frames. All threads' samples are complete before and after.
  template <class Sums>
  METATASNET_DEVICE void add(Block& block, int column, const Sums& sum, float* samples) const {
    const int parts = this->parts(), slots = this->slots();
    const int past = column + turn + kColumns < window + turn ? column + turn + kColumns : window + turn;
    for (int from = column + turn; from < past;) {  // the taps of one part, counted on beyond the window
      const int lap = from < window ? 0 : window, part = (from - lap) / stride, first = lap + part * stride;
      const int last = lap ? past : window, count = last - first < stride ? last - first : stride;
      from = first + count;
#pragma unroll
      for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int row = Sums::row(block, i) + d_row(block.lane(), 2 * h), slot = row + part - (parts - 1);
          if (slot < 0 || slot >= slots) continue;
#pragma unroll
          for (int j = 0; j < Sums::fragments; ++j) {
#pragma unroll
            for (int c = 0; c < 2; ++c) {
              const int at = column + turn - first + Sums::column(block) + kFragmentColumns * j + d_column(block.lane(), c);
              if (at >= 0 && at < count) samples[slot * stride + at] += sum.v[i][j][2 * h + c];
            }
          }
        }
      }
      block.sync();
    }
  }

  template <int threads>
  METATASNET_DEVICE void write(const Block& block, const float* samples) const {
    const std::int64_t length = frames * stride, begin = first_slot(block) * stride - padding;
    float* const out = signal + block.z() * length;
    for (int i = block.thread(); i < slots() * stride; i += threads) {
      if (begin + i >= 0 && begin + i < length) out[begin + i] = samples[i];
    }
  }
};

struct OverlapAddArgs {
  PointwiseArgs product;  // frames, source[0], weights (window, ld_weights); one instrument
  Overlapping overlap;
};

// Three stages, and the samples for a stride of 80, take 94 KiB: less than the 99 KiB of the GPUs with the least.
using OverlapAddStages = FramesAndWeights<3>;
constexpr int kOverlapAddStageBytes = OverlapAddStages::stages * OverlapAddStages::bytes;

inline std::size_t overlap_add_shared_bytes(int stride) {
  return kOverlapAddStageBytes + sizeof(float) * kTile * stride;
}

// Slots of `stride` samples that a block writes, counted with the padding before the signal; and the number of blocks
// for them.
inline int slots_of(int window, int stride) { return kTile - reach_of(window, stride); }
// The first input, rounded down to a product's chunk, that has taps beyond the first tile of them as they are stored.
inline int outer_input(const device::Sizes& s) {
  const int before = s.turn, behind = s.window - kColumns - s.turn;  // taps on either side of the tile
  int first = 0;
  for (std::size_t i = 0; i < s.taps.size() && (s.window - s.taps[i]) / 2 >= (before > behind ? before : behind); ++i) {
    first += s.inputs[i];
  }
  return first / 64 * 64;
}

inline int overlap_add_tiles(std::int64_t frames, int window, int stride) {
  const std::int64_t padding = (window - stride) / 2, slots = frames + (padding + stride - 1) / stride;
  return static_cast<int>((slots + slots_of(window, stride) - 1) / slots_of(window, stride));
}

// Grid: tiles of slots, 1, units.
template <class Arithmetic>
struct OverlapAdd {
  using Args = OverlapAddArgs;
  static constexpr int threads = kThreads;
  static constexpr int blocks = 1;

  static METATASNET_DEVICE void run(Block& block, const Args& args) {
    const Overlapping& overlap = args.overlap;
    auto* samples = reinterpret_cast<float*>(block.shared() + kOverlapAddStageBytes);
    overlap.begin<threads>(block, samples);
    for (int column = 0; column < overlap.window; column += kColumns) {
      Accumulators sum;
      pointwise_product<Arithmetic, From::frames, OverlapAddStages>(block, args.product, block.z(),
                                                                    overlap.first_frame(block), column, sum,
                                                                    [](Accumulators& begin) { clear(begin); },
                                                                    column ? overlap.outer : 0);
      overlap.add(block, column, sum, samples);
    }
    overlap.write<threads>(block, samples);
  }
};

struct OverlapAddWgmmaArgs {
  WgmmaArgs operands;
  Overlapping overlap;
};

// Grid: tiles of slots, a multiple of `cluster`; 1; units.
struct OverlapAddWgmma {
  using Args = OverlapAddWgmmaArgs;
  using Pipeline = WgmmaPipeline<false, 2>;
  static constexpr int threads = Pipeline::Sums::threads;
  static constexpr int blocks = 2;
  static constexpr int cluster = Pipeline::cluster;

  static std::size_t shared_bytes(int window, int stride) {
    return Pipeline::shared_bytes + sizeof(float) * slots_of(window, stride) * stride;
  }

  static METATASNET_DEVICE void run(Block& block, const Args& args) {
#if METATASNET_HOPPER
    const Overlapping& overlap = args.overlap;
    auto* samples = reinterpret_cast<float*>(block.shared() + Pipeline::shared_bytes);
    overlap.begin<threads>(block, samples);
    const int tiles = (overlap.window + kColumns - 1) / kColumns;
    Pipeline pipeline(block, args.operands, static_cast<int>(overlap.first_frame(block)), 0, tiles, overlap.outer);
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
      Pipeline::Sums sum;
      clear(sum);
      pipeline.multiply(block, args.operands, sum, tile ? overlap.outer : 0);
      overlap.add(block, tile * kColumns, sum, samples);
    }
    overlap.write<threads>(block, samples);
    block.sync_cluster();  // no block leaves while another copies to it or arrives at its barriers
#else
    __trap();  // never launched: the host asks for compute capability 9.0
#endif
  }
};

// On compute capability 9.0 alone.
void launch_overlap_add_wgmma(const Stream& stream, std::int64_t units, const OverlapAddArgs& args);

}  // namespace metatasnet::METATASNET_DEVICES
