// Products of frames for Hopper: tiles of 128 frames by 160 outputs by wgmma, from boxes that TMA copies.
//
// A block is one warpgroup, whose first thread also asks for the copies; two blocks share a multiprocessor, so one
// multiplies while the other writes. One more warp for the copies would leave 168 registers for each thread, too few beside
// 160 sums: three of ten warps are on one quarter of the multiprocessor. A cluster is two tiles of frames with the same
// outputs: each block copies its own frames, and half of the weights to both. So a stage of 64 channels costs 16 + 10 KiB
// from the second-level cache for 2.6 MFLOP, where Pointwise reads 36. Biases, share and outputs are computed by the
// functions of Pointwise. In the emulator sums have the same bits; only moments are added up in another order.
//
// The PReLU on the frames of `in_conv` is applied to each stage in shared memory, once for both halves of the outputs. Each of
// its two sources begins a chunk; what is left of a source's last chunk is zeros.
//
// Each stage has two barriers in every block. "Full" ends a phase when the stage's bytes have arrived: the
// frames, and both halves of the weights. "Empty" ends one when the four warps of both blocks have read the stage, because
// the next weights go to both. Shared memory: 36 KiB a stage, three of them in PointwiseWgmma.
#pragma once

#include "cuda/launch.h"
#include "cuda/pointwise.h"

namespace metatasnet::METATASNET_DEVICES {

// A thread's sums of a tile: those of two products of 64 rows, one below the other, for all 160 outputs.
struct WgmmaAccumulators {
  static constexpr int threads = 4 * kWarp, fragments = kColumns / kFragmentColumns;
  static constexpr int apart = kProductRows;
  float v[kRowFragments][fragments][4];

  static METATASNET_DEVICE int row(const Block& block, int i) {
    return kFragmentRows * block.warp() + apart * i;
  }
  static METATASNET_DEVICE int column(const Block&) { return 0; }
};

// Sizes are the same whether the driver's tensor maps are aligned to 64 bytes or, from CUDA 13 on, to 128.
struct alignas(128) WgmmaArgs {
  TensorMap frames[2];  // (units, frames, channels) of each source; two only for activated frames
  TensorMap weights;    // (matrices, outputs, channels)
  PointwiseArgs product;
  bool shared[2];  // by the instruments of an item: the source has its frames once
  int second;      // channel of the weights at which the second source begins
  int matrices_item, matrices_instrument;  // from those of one item, or instrument, to those of the next
};

// The product of a block's tiles: `stages` in shared memory, which TMA fills and wgmma reads. The outputs may be several tiles of
// 160, one after the other, between which the copies go on.
template <bool activates, int stages>
class WgmmaPipeline {
 public:
  using Sums = WgmmaAccumulators;
  static constexpr int cluster = 2;
  static constexpr int channels = kRowBytes / static_cast<int>(sizeof(Bfloat16));  // of a stage
  static constexpr int frame_bytes = kTile * kRowBytes, weight_bytes = kColumns * kRowBytes;
  static constexpr int stage_bytes = frame_bytes + weight_bytes;
  static constexpr int part_rows = kColumns / cluster, part_bytes = weight_bytes / cluster;  // of weights, a block copies
  static constexpr int shared_bytes = stages * stage_bytes + stages * 2 * 8;
  static_assert(frame_bytes % kSwizzleBytes == 0 && part_bytes % kSwizzleBytes == 0);

  // Begins to copy; `tiles` of outputs from `first_output` on follow. All but the first begin at channel `outer`.
  METATASNET_DEVICE WgmmaPipeline(Block& block, const WgmmaArgs& args, int first_frame, int first_output, int tiles,
                                  int outer = 0)
      : copies_(block, args, first_frame, first_output, outer) {
    if (block.thread() == 0) {
#pragma unroll
      for (int stage = 0; stage < stages; ++stage) {
        block.init_barrier(full(stage), 1);
        block.init_barrier(empty(stage), cluster * Sums::threads / kWarp);
      }
      block.publish_barriers();
    }
    block.sync_cluster();
    chunks_ = chunks_of(args.second) + chunks_of(args.product.ld_weights - args.second);
    left_ = tiles * chunks_ - (tiles - 1) * (outer / channels);
    if (block.thread() == 0) {
#pragma unroll 1
      for (int chunk = 0; chunk < stages - 1 && chunk < left_; ++chunk) copies_.next(block, args);
    }
  }

  // sum += the product of the next tile of outputs, which begins at `channel`.
  METATASNET_DEVICE void multiply(Block& block, const WgmmaArgs& args, Sums& sum, int channel = 0) {
    const auto next = [&](auto count) {  // steps of the chunk
      constexpr int unit = kDescriptorBytes;
      const int at = ring_.stage * (stage_bytes / unit);
      block.wait_phase(full(ring_.stage), ring_.parity);
      if (activates) activate(block, ring_.stage * stage_bytes, args.product.source_slope);
      pin(block, sum);
      block.begin_products();
#pragma unroll
      for (int step = 0; step < decltype(count)::value; ++step) {
#pragma unroll
        for (int i = 0; i < kRowFragments; ++i) {
          block.multiply(sum.v[i], at + (i * kProductRows * kRowBytes + step * kProductBytes) / unit,
                         at + (frame_bytes + step * kProductBytes) / unit);
        }
      }
      block.commit_products();
      // Into the stage of the chunk before, while this one is multiplied.
      if (block.thread() == 0 && left_ > stages - 1) copies_.next(block, args);
      --left_;
      block.template wait_products<0>();
      pin(block, sum);
      if (block.lane() < cluster) block.arrive_at(empty(ring_.stage), block.lane());
      ring_.next();
    };
    const int chunks = chunks_ - channel / channels;
    const int whole = activates ? chunks : (args.product.ld_weights - channel) / channels;
#pragma unroll 1
    for (int chunk = 0; chunk < whole; ++chunk) next(std::integral_constant<int, steps>());
    // Half a chunk is left, because channels are stored in multiples of 32.
    if (whole < chunks) next(std::integral_constant<int, steps / 2>());
  }

 private:
  static constexpr int steps = kRowBytes / kProductBytes;

  static METATASNET_DEVICE int full(int stage) { return stages * stage_bytes + 8 * stage; }
  static METATASNET_DEVICE int empty(int stage) { return full(stages + stage); }
  static METATASNET_DEVICE int chunks_of(int count) { return (count + channels - 1) / channels; }

  // The stages one after the other, again and again; `parity` of the phases of this time round.
  struct Ring {
    int stage = 0, parity = 0;

    METATASNET_DEVICE void next() {
      if (++stage < stages) return;
      stage = 0;
      parity ^= 1;
    }
  };

  // Asks for the stages of the tiles, one after the other; one thread does so.
  class Copies {
   public:
    METATASNET_DEVICE Copies(const Block& block, const WgmmaArgs& args, int first_frame, int first_output, int outer)
        : outer_(outer), frame_(first_frame), output_(first_output) {
      const int item = block.z() / args.product.instruments, instrument = block.z() % args.product.instruments;
      for (int i = 0; i < 2; ++i) unit_[i] = activates && args.shared[i] ? item : block.z();
      matrix_ = item * args.matrices_item + instrument * args.matrices_instrument;
    }

    METATASNET_DEVICE void next(Block& block, const WgmmaArgs& args) {
      const int at = ring_.stage * stage_bytes, barrier = full(ring_.stage), part = block.rank();
      block.wait_phase(empty(ring_.stage), ring_.parity ^ 1);
      block.arrive_expecting(barrier, stage_bytes);
      const bool first = !activates || channel_ < args.second;
      if (first) {
        block.copy_box(at, args.frames[0], barrier, channel_, frame_, unit_[0]);
      } else {
        block.copy_box(at, args.frames[1], barrier, channel_ - args.second, frame_, unit_[1]);
      }
      block.copy_box_to(at + frame_bytes + part * part_bytes, args.weights, barrier, channel_, output_ + part * part_rows,
                        matrix_, (1 << cluster) - 1);
      ring_.next();
      channel_ += channels;
      if (activates && first && channel_ > args.second) channel_ = args.second;
      if (channel_ < args.product.ld_weights) return;
      channel_ = outer_;
      output_ += kColumns;
    }

   private:
    Ring ring_;
    int channel_ = 0, outer_, matrix_;  // channel of the weights: now, where the next tile begins
    int unit_[2];                       // of each source
    int frame_, output_;
  };

  // Applies the PReLU to the frames of a stage, whose places do not matter to it.
  static METATASNET_DEVICE void activate(Block& block, int stage, float slope) {
#pragma unroll 4
    for (int at = 16 * block.thread(); at < frame_bytes; at += 16 * Sums::threads) {
      char* const unit = block.shared() + stage + at;
      Words words = load_words(unit);
#pragma unroll
      for (std::uint32_t& word : words.word) word = InBfloat16::operand<true>(word, slope);
      store_words(unit, words);
    }
    block.publish_operands();
    block.sync();  // all threads' values are there
  }

  static METATASNET_DEVICE void pin(const Block& block, Sums& sum) {
#pragma unroll
    for (int i = 0; i < kRowFragments; ++i) block.pin(sum.v[i]);
  }

  Copies copies_;
  Ring ring_;
  int chunks_, left_;  // of a tile; of all tiles, not yet multiplied
};

// Stores the pairs of 16 rows that a warp has: pair(j, h) of its row `first` + lane / 4 + 8 h, channels 8 j on; place(row, j)
// is that of eight channels. Rows that are not there become 0.
template <int fragments, class Pair, class Where>
METATASNET_DEVICE void store_rows(Block& block, int first, int rows, Pair pair, Where place) {
  const int lane = block.lane(), row = first + lane % 16;
#pragma unroll
  for (int j = 0; j < fragments; j += 2) {
    block.store_matrices({pair(j, 0), pair(j, 1), pair(j + 1, 0), pair(j + 1, 1)}, place(row, j + lane / 16));
  }
  block.sync_warp();
  if (row < rows) return;
#pragma unroll
  for (int j = 0; j < fragments; j += 2) store_words(block.shared() + place(row, j + lane / 16), Words{});
}

// Applies the PReLU and writes the results in bfloat16, 16 bytes at a time, from a StoredTile.
METATASNET_DEVICE void write_stored(Block& block, const PointwiseArgs& args, const WgmmaAccumulators& sum, int unit,
                                    std::int64_t first_frame, int first_output) {
  using Sums = WgmmaAccumulators;
  using Tile = StoredTile<kColumns>;
  const int left = frames_from(args.frames, first_frame, kTile);
#pragma unroll
  for (int i = 0; i < kRowFragments; ++i) {
    store_rows<Sums::fragments>(
        block, Sums::row(block, i), left,
        [&](int j, int h) {
          return pack_bfloat16(prelu(sum.v[i][j][2 * h], args.slope), prelu(sum.v[i][j][2 * h + 1], args.slope));
        },
        [](int row, int j) { return Tile::place(row, j); });
  }
  block.sync();
  constexpr int kRowUnits = kColumns / 8, kLines = Sums::threads / kRowUnits;  // of 16 bytes; rows at once
  const int line = block.thread() / kRowUnits, channel = block.thread() % kRowUnits * 8;
  if (line >= kLines || channel >= args.ld_out - first_output) return;
  const char* from = block.shared() + Tile::place(line, channel / 8);
  auto* out = static_cast<Bfloat16*>(args.out) + (unit * args.frames + first_frame + line) * args.ld_out + first_output + channel;
#pragma unroll 4
  for (int row = line; row < left; row += kLines) {
    store_words(out, load_words(from));
    from += kLines * Tile::pitch;
    out += std::int64_t{kLines} * args.ld_out;
  }
}

// Grid: tiles of frames, a multiple of `cluster`; tiles of outputs; units.
template <From from>
struct PointwiseWgmma {
  using Args = WgmmaArgs;
  static constexpr bool activates = from == From::activated_frames;
  using Pipeline = WgmmaPipeline<activates, 3>;
  using Sums = typename Pipeline::Sums;
  static constexpr int threads = Sums::threads;
  static constexpr int blocks = 2;
  static constexpr int cluster = Pipeline::cluster, shared_bytes = Pipeline::shared_bytes;
  static_assert(MomentsSpace<kColumns>::bytes <= shared_bytes && StoredTile<kColumns>::bytes <= shared_bytes);

  static METATASNET_DEVICE void run(Block& block, const Args& args) {
#if METATASNET_HOPPER
    // Read at each use: a kept value would cost a register in the product's loop.
    const auto first_frame = [&] { return std::int64_t{block.x()} * kTile; };
    const auto first_output = [&] { return block.y() * kColumns; };
    Sums sum;
    Pipeline pipeline(block, args, block.x() * kTile, first_output(), 1);
    begin_with_bias(block, args.product, block.z(), first_output(), sum);
    pipeline.multiply(block, args, sum);
    // All threads are done with shared memory, and no block leaves while another copies to it or arrives at its barriers.
    block.sync_cluster();
    if (first_frame() >= args.product.frames) return;
    if (from == From::frames_and_share) {
      add_share(block, args.product, block.z(), first_frame(), first_output(), sum);
      block.sync();  // the positions have been read
    }
    if constexpr (activates) {
      write_outputs<float>(block, args.product, sum, block.z(), first_frame(), first_output());
      if (!args.product.statistics.wanted) return;
      finish_outputs(block, args.product, sum, block.z(), block.x(), block.y());
    } else {
      write_stored(block, args.product, sum, block.z(), first_frame(), first_output());
      if (from == From::frames_and_share || !args.product.statistics.wanted) return;
      finish_stored<threads, kColumns>(block, args.product.statistics, block.z(), block.x(), block.y());
    }
#else
    __trap();  // never launched: the host asks for compute capability 9.0
#endif
  }
};

}  // namespace metatasnet::METATASNET_DEVICES
