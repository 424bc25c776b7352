// All blocks of a masking network in one launch, for Hopper: the residual stream and all activations stay on the chip.
//
//   for each block i:  a = prelu(conv1d(x));  h = prelu(depthwise(norm_1(a)));  out[i] = norm_2(h);  x += res_out(out[i])
//
// A unit's frames are shared out among thread blocks, which run at the same time, one on each multiprocessor; the rows of
// one of them are some 144 consecutive frames. Each of its three warpgroups owns 64 rows with all channels: x, in float32, is
// the sums of `res_out`'s product and never leaves the registers. Shared memory holds the rows as wgmma reads them (first x,
// then h, then norm_2(h)), the rows of a between frames of the neighbours, and one product's weights, which TMA copies.
//
// Thread blocks of a unit wait for each other twice in a block: when the moments of a, and the frames that neighbours
// need, are in memory, and when the moments of h are. Each merges the moments of all in float64 in the same order, so all
// have the same norm, and every run has the same bits. Which rows a thread block owns depends on the numbers of frames and of
// instruments alone. The depthwise convolution is on tensor cores too: a tap is a product with a diagonal matrix.
//
// Moments are sums on tensor cores (moments.h).
//
// Bytes per frame and channel: x 4 once, out 2 in each block; d frames at each end of a thread block's rows 4. FLOPs per unit:
// 4 T H B for each block. Shared memory 212 KiB, 151 registers, one block of 384 threads. Predicted on an H100: 146 us for two
// units of 9,600 frames and 18 blocks, bound by products and instructions alike.
// Source: Samuel et al. 2020, section 2; original model/mask_tcn.py.
#pragma once

#include "cuda/wgmma.h"
#include "cuda/workspace.h"

namespace metatasnet::METATASNET_DEVICES {

constexpr int kMostRows = 160;   // of a thread block
constexpr int kRows = 144;       // that are aimed at: nine warps' 16
constexpr int kMostDilation = 32;
constexpr int kMostBlocks = 32;  // of the network

// How frames are shared out: `blocks` thread blocks for each unit, `rows` frames each, the last may have fewer.
struct Shares {
  int blocks = 0, rows = 0;
  std::string obstacle;  // why one launch cannot serve; then the numbers are 0

  Shares(const Sizes& s, std::int64_t frames) {
    const std::int64_t fewest = (frames + kMostRows - 1) / kMostRows;
    if (s.B > kColumns || s.H > kColumns) obstacle = "B and H must be at most " + std::to_string(kColumns);
    if (s.blocks() < 2 || s.blocks() > kMostBlocks) obstacle = "there must be 2 to " + std::to_string(kMostBlocks) + " blocks";
    if (fewest > kMultiprocessors) obstacle = "there may be " + std::to_string(kMultiprocessors * kMostRows) + " frames at most";
    for (const int dilation : s.dilations) {
      if (dilation > kMostDilation) obstacle = "dilations must be at most " + std::to_string(kMostDilation);
    }
    if (frames < 1) obstacle = "there are no frames";
    if (!obstacle.empty()) return;
    std::int64_t together = kMultiprocessors / fewest, most = (frames + kRows - 1) / kRows;
    if (together > s.instruments) together = s.instruments;
    if (most > kMultiprocessors / together) most = kMultiprocessors / together;
    const std::int64_t each = (frames + most - 1) / most, count = (frames + each - 1) / each;
    rows = static_cast<int>(each);
    blocks = static_cast<int>(count);
  }
};

struct BlockNumbers {
  int dilation;
  float slope_1, slope_2;
};

struct PersistentArgs {
  TensorMap conv;  // (blocks * instruments, H, padded(B))
  TensorMap mix;   // ((blocks - 1) * instruments, B, padded(H))
  int instruments, blocks, first_unit;
  int shares, frames, rows;      // of a unit: thread blocks, frames; of a thread block: frames, the last may have fewer
  int B, H, width;               // width: channels of a group of H
  const float* x;                // (units, frames, padded(B))
  const float* affine;           // (units, 3, padded(B)): the norm of x
  const float* taps;             // (blocks, instruments, 3, padded(H))
  const float *norm_1, *norm_2;  // (blocks, instruments, 2, H)
  const float* bias;             // (blocks - 1, instruments, B), of res_out; null: none
  Bfloat16* border;              // (units, frames, padded(H)): frames of a that neighbours read
  Moments* moments;              // (units, 2, kGroups, thread blocks)
  int* arrived;                  // (units): zero before the launch
  Bfloat16* out;                 // (units, frames, blocks, padded(H))
  BlockNumbers numbers[kMostBlocks];
};

// Grid: thread blocks of a unit, 1, units.
struct PersistentBlocks {
  using Args = PersistentArgs;
  static constexpr int groups = 3;  // warpgroups, with kProductRows rows each
  static constexpr int threads = groups * 4 * kWarp;
  static constexpr int blocks = 1;
  static constexpr bool together = true;
  static constexpr int channels = kColumns, units = channels / 8;  // of 16 bytes
  static constexpr int chunks = 3;  // of 64 channels, the last half empty
  static constexpr int half = channels / 2;
  static constexpr int steps = channels * static_cast<int>(sizeof(Bfloat16)) / kProductBytes, steps_of_chunk = 4;
  static constexpr int lines = 16;  // rows that threads with eight channels each take at once; swizzled alike 16 rows on
  static_assert(lines * units <= threads);

  // Shared memory, in bytes: operands and weights chunk by chunk, rows of a, and float32.
  static constexpr int operand_chunk = groups * kProductRows * kRowBytes, weight_chunk = kColumns * kRowBytes;
  static constexpr int weights_at = chunks * operand_chunk;
  static constexpr int a_at = weights_at + chunks * weight_chunk;
  static constexpr int pitch = channels * 2 + 16;  // of a row of a: eight rows lie in different banks
  static constexpr int sums_at = a_at + (kMostRows + 2 * kMostDilation) * pitch;  // (2, channels): of a value and its square
  static constexpr int factors_at = sums_at + 2 * channels * 4;  // (6, channels)
  static constexpr int inverses_at = factors_at + 6 * channels * 4;  // of the values of a group, float64: here, in the unit
  static constexpr int instrument_at = inverses_at + 2 * 8, barriers_at = instrument_at + 8;
  static constexpr int shared_bytes = barriers_at + chunks * 8;
  static_assert(operand_chunk % kSwizzleBytes == 0 && weight_chunk % kSwizzleBytes == 0);
  static_assert(groups * kProductRows >= kMostRows && kMostRows % kFragmentRows == 0 && kGroups <= threads / kWarp);
  static_assert(kMostRows < 256);  // sums of squares of one value are exact

  static METATASNET_DEVICE void run(Block& block, const Args& args) {
#if METATASNET_HOPPER
    const int first = block.x() * args.rows, rows = rows_of(args, block.x());
    if (block.thread() == 0) {
#pragma unroll
      for (int chunk = 0; chunk < chunks; ++chunk) block.init_barrier(full(chunk), 1);
      block.publish_barriers();
      inverses(block)[0] = 1.0 / (rows * args.width);
      inverses(block)[1] = 1.0 / (args.frames * args.width);
      instrument(block) = unit_of(block, args) % args.instruments;
      load_weights(block, args, args.conv, 0);
    }
    for (int at = 16 * block.thread(); at < weights_at; at += 16 * threads) store_words(block.shared() + at, Words{});
    for (int i = block.thread(); i < 6 * channels; i += threads) factors(block)[i] = 0.0f;
    block.sync();
    float x[channels / 8][4];
    load_stream(block, args, first, rows, x);
    store_operand(block, rows, x);
    block.publish_operands();
    block.sync();
#pragma unroll 1
    for (int i = 0; i < args.blocks; ++i) {
      const BlockNumbers numbers = args.numbers[i];
      const bool last = i + 1 == args.blocks;
      block.forget();
      convolve(block, rows, 2 * i & 1, numbers.slope_1);
      block.sync();  // a is complete, and the weights have been read
      if (block.thread() == 0 && !last) load_weights(block, args, args.mix, i);
      share_borders(block, args, numbers.dilation, first, rows);
      add_up_rows(block, rows, 16 * pitch, [&](int row, int unit) { return a_place(row, unit); });
      block.sync();
      const Norm norm_1(block, args, args.norm_1, args.taps, i);
      meet(block, args, 0, 2 * i + 1);
      norm_1.make(block, args, 0);
      read_borders(block, args, numbers.dilation, first, rows);
      block.sync();
      block.forget();
      depthwise(block, args, numbers, first, rows);
      block.sync();
      add_up_rows(block, rows, 16 * kRowBytes, [&](int row, int unit) { return operand_place(row, unit); });
      block.sync();
      const Norm norm_2(block, args, args.norm_2, nullptr, i);
      meet(block, args, 1, 2 * i + 2);
      norm_2.make(block, args, 1);
      block.sync();
      block.forget();
      normalise(block, args, i, first, rows);
      if (last) return;
      block.publish_operands();
      block.sync();
      block.forget();
      mix(block, args, i, rows, x);
      store_operand(block, rows, x);
      block.publish_operands();
      block.sync();  // x is complete, and the weights have been read
      if (block.thread() == 0) load_weights(block, args, args.conv, i + 1);
    }
#else
    __trap();  // never launched: the host asks for compute capability 9.0
#endif
  }

 private:
  static METATASNET_DEVICE int full(int chunk) { return barriers_at + 8 * chunk; }
  static METATASNET_DEVICE int unit_of(const Block& block, const Args& args) { return args.first_unit + block.z(); }
  static METATASNET_DEVICE float* sums(const Block& block) { return reinterpret_cast<float*>(block.shared() + sums_at); }
  static METATASNET_DEVICE float* factors(const Block& block) {
    return reinterpret_cast<float*>(block.shared() + factors_at);
  }
  static METATASNET_DEVICE double* inverses(const Block& block) {
    return reinterpret_cast<double*>(block.shared() + inverses_at);
  }
  // The unit's instrument: it is divided for once.
  static METATASNET_DEVICE int& instrument(const Block& block) {
    return *reinterpret_cast<int*>(block.shared() + instrument_at);
  }
  // Places of eight channels of a row.
  static METATASNET_DEVICE int operand_place(int row, int unit) {
    return (unit >> 3) * operand_chunk + row * kRowBytes + (((unit ^ row) & 7) << 4);
  }
  static METATASNET_DEVICE int a_place(int row, int unit) { return a_at + (kMostDilation + row) * pitch + unit * 16; }

  // The first of this thread's two rows, 8 apart, and the first row of its warp and of its warpgroup.
  static METATASNET_DEVICE int own_row(const Block& block) { return warp_row(block) + d_row(block.lane(), 0); }
  static METATASNET_DEVICE int warp_row(const Block& block) { return kFragmentRows * block.warp(); }
  static METATASNET_DEVICE int group_row(Block& block) { return block.uniform(block.warp() / 4) * kProductRows; }

  // The weights of block `i` of this unit's instrument, chunk by chunk; one thread asks for them.
  static METATASNET_DEVICE void load_weights(Block& block, const Args& args, const TensorMap& map, int i) {
    const int matrix = i * args.instruments + instrument(block);
#pragma unroll
    for (int chunk = 0; chunk < chunks; ++chunk) {
      block.arrive_expecting(full(chunk), weight_chunk);
      block.copy_box(weights_at + chunk * weight_chunk, map, full(chunk), chunk * (kRowBytes / 2), 0, matrix);
    }
  }

  // x, with the norm before the blocks; 0 in rows and channels that are not there.
  template <int fragments>
  static METATASNET_DEVICE void load_stream(const Block& block, const Args& args, int first, int rows,
                                            float (&x)[fragments][4]) {
    const int ld = padded(args.B), column = d_column(block.lane(), 0), row = own_row(block);
    const float* const from = args.x + (std::int64_t{unit_of(block, args)} * args.frames + first + row) * ld + column;
    const float* const affine = args.affine + std::int64_t{unit_of(block, args)} * 3 * ld + column;
#pragma unroll
    for (int j = 0; j < fragments; ++j) {
#pragma unroll
      for (int r = 0; r < 4; ++r) x[j][r] = 0.0f;
      if (column + 8 * j >= ld) continue;
      const Pair scale = load_pair(affine + 8 * j), mean = load_pair(affine + ld + 8 * j);
      const Pair shift = load_pair(affine + 2 * ld + 8 * j);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (row + 8 * h >= rows) continue;
        const Pair pair = load_pair(from + 8 * h * ld + 8 * j);
#pragma unroll
        for (int c = 0; c < 2; ++c) x[j][2 * h + c] = (pair.v[c] - mean.v[c]) * scale.v[c] + shift.v[c];
      }
    }
  }

  // x as the operand of conv1d; rows that are not there stay 0.
  template <int fragments>
  static METATASNET_DEVICE void store_operand(Block& block, int rows, const float (&x)[fragments][4]) {
    if (warp_row(block) >= rows) return;
    store_rows<fragments>(
        block, warp_row(block), rows, [&](int j, int h) { return pack_bfloat16(x[j][2 * h], x[j][2 * h + 1]); },
        [&](int row, int j) { return operand_place(row, j); });
  }

  // sum += operand times weights, for outputs from `output` on; waits for the weights' phase if `wait`.
  template <int fragments>
  static METATASNET_DEVICE void multiply(Block& block, int parity, bool wait, int output, float (&sum)[fragments][4]) {
    constexpr int unit = kDescriptorBytes;
    const int rows_at = group_row(block) * (kRowBytes / unit);
    const int columns_at = weights_at / unit + block.uniform(output) * (kRowBytes / unit);
    if (wait) {
#pragma unroll
      for (int chunk = 0; chunk < chunks; ++chunk) block.wait_phase(full(chunk), parity);
    }
    block.pin(sum);
    block.begin_products();
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      const int chunk = step / steps_of_chunk, at = step % steps_of_chunk * (kProductBytes / unit);
      block.multiply(sum, rows_at + chunk * (operand_chunk / unit) + at, columns_at + chunk * (weight_chunk / unit) + at);
    }
    block.commit_products();
    block.template wait_products<0>();
    block.pin(sum);
  }

  // conv1d and PReLU, half of the outputs after the other: sums of all would not fit beside x in the registers.
  static METATASNET_DEVICE void convolve(Block& block, int rows, int parity, float slope) {
    if (group_row(block) >= rows) return;
#pragma unroll 1
    for (int output = 0; output < channels; output += half) {
      float sum[half / 8][4] = {};
      multiply(block, parity, output == 0, output, sum);
      if (warp_row(block) >= rows) continue;
      // The larger of value and slope * value, or the smaller, is the PReLU in two instructions.
      const auto store = [&](auto activated) {
        store_rows<half / 8>(
            block, warp_row(block), rows,
            [&](int j, int h) {
              return pack_bfloat16(activated(sum[j][2 * h], slope * sum[j][2 * h]),
                                   activated(sum[j][2 * h + 1], slope * sum[j][2 * h + 1]));
            },
            [&](int row, int j) { return a_place(row, output / 8 + j); });
      };
      if (slope <= 1.0f) {
        store([](float value, float scaled) { return fmaxf(value, scaled); });
      } else {
        store([](float value, float scaled) { return fminf(value, scaled); });
      }
    }
  }

  // res_out of norm_2(h) into the residual stream.
  template <int fragments>
  static METATASNET_DEVICE void mix(Block& block, const Args& args, int i, int rows, float (&x)[fragments][4]) {
    if (group_row(block) >= rows) return;
    multiply(block, 1, true, 0, x);
    if (!args.bias) return;
    const float* const bias = args.bias + (i * args.instruments + instrument(block)) * args.B;
    const int column = d_column(block.lane(), 0);
#pragma unroll
    for (int j = 0; j < fragments; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        if (column + 8 * j + c >= args.B) continue;
        const float value = bias[column + 8 * j + c];
        x[j][c] += value;
        x[j][2 + c] += value;
      }
    }
  }

  // The sums of all rows of each channel, and of the squares; a warp has 16 channels.
  template <class Where>
  static METATASNET_DEVICE void add_up_rows(Block& block, int rows, int step, Where place) {
    const int warp = block.warp();
    if (warp >= channels / 16) return;
    add_up<5>(block, rows, step, [&](int row, int half) { return place(row, 2 * warp + half); }, sums(block) + 16 * warp, channels);
  }

  // Publishes the moments of this thread block's rows, and what it has published before, and waits until all of the
  // unit have; `count` is the number of times that they have met.
  static METATASNET_DEVICE void meet(Block& block, const Args& args, int which, int count) {
    if (block.warp() == 0) {  // a lane adds up the values, or the squares, of a group
      const int lane = block.lane(), group = lane % kGroups;
      const float* const from = sums(block) + lane / kGroups % 2 * channels + group * args.width;
      double sum = 0.0;
#pragma unroll 4
      for (int channel = 0; channel < args.width; ++channel) sum += double{from[channel]};
      const double squares = block.shuffle_xor(sum, kGroups);
      const double mean = sum * inverses(block)[0], m2 = squares - sum * mean;
      Moments* const to = moments(block, args, which) + group * args.shares + block.x();
      if (lane < kGroups) {
        block.publish(&to->mean, static_cast<float>(mean));
        block.publish(&to->m2, m2 > 0.0 ? static_cast<float>(m2) : 0.0f);
      }
    }
    int* const arrived = args.arrived + unit_of(block, args);
    block.fence();
    block.sync();
    if (block.thread() == 0) {
      block.increment(arrived);
      block.await(arrived, count * args.shares);
    }
    block.sync();
    block.fence();
  }

  static METATASNET_DEVICE int rows_of(const Args& args, int of) {
    const int left = args.frames - of * args.rows;
    return left < args.rows ? left : args.rows;
  }
  static METATASNET_DEVICE Moments* moments(const Block& block, const Args& args, int which) {
    return args.moments + (std::int64_t{unit_of(block, args)} * 2 + which) * args.shares * kGroups;
  }

  // A norm, of which a lane of warp g makes a channel of group g: its numbers are loaded before the blocks meet.
  struct Norm {
    float weight, shift, tap[3];

    METATASNET_DEVICE Norm(const Block& block, const Args& args, const float* norms, const float* taps, int i)
        : weight(0.0f), shift(0.0f), tap{} {
      const int channel = channel_of(block, args);
      if (channel < 0) return;
      const int matrix = i * args.instruments + instrument(block);
      norms += matrix * 2 * args.H + channel;
      weight = norms[0];
      shift = norms[args.H];
      if (!taps) return;
      taps += matrix * 3 * padded(args.H) + channel;
#pragma unroll
      for (int k = 0; k < 3; ++k) tap[k] = taps[k * padded(args.H)];
    }

    static METATASNET_DEVICE int channel_of(const Block& block, const Args& args) {
      return block.warp() < kGroups && block.lane() < args.width ? block.warp() * args.width + block.lane() : -1;
    }

    // Before the depthwise convolution (`which` 0) the factors are taps with the scale in them, rounded to bfloat16, and what
    // each adds, with the mean from the rounded ones (fold.h); else scale and constant: n(h) = scale h + constant.
    METATASNET_DEVICE void make(Block& block, const Args& args, int which) const {
      if (block.warp() >= kGroups) return;
      const int parts = args.shares;
      const Moments* const from = moments(block, args, which) + block.warp() * args.shares;
      double sum = 0.0, squares = 0.0;
      for (int part = block.lane(); part < parts; part += kWarp) {
        const Moments* const at = from + part;
        const double mean = double{block.load_written(&at->mean)}, count = rows_of(args, part) * args.width;
        sum += mean * count;
        squares += double{block.load_written(&at->m2)} + mean * mean * count;
      }
      const double mean = warp_sum(block, sum) * inverses(block)[1];
      const double variance = warp_sum(block, squares) * inverses(block)[1] - mean * mean;
      const float rstd = reciprocal_root(static_cast<float>((variance > 0.0 ? variance : 0.0) + kEpsilon));
      const int channel = channel_of(block, args);
      if (channel < 0) return;
      const float scale = weight * rstd;
      float* const to = factors(block) + channel;
      if (which == 1) {
        to[0] = scale;
        to[channels] = shift - static_cast<float>(mean) * scale;
        return;
      }
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        const float rounded = to_float(stored<Bfloat16>(tap[k] * scale));
        to[k * channels] = rounded;
        to[(3 + k) * channels] = tap[k] * shift - rounded * static_cast<float>(mean);
      }
    }
  };

  // Calls body(row, unit) for this thread's units of 16 bytes of rows [0, rows).
  template <class Body>
  static METATASNET_DEVICE void each_unit(const Block& block, const Args& args, int rows, Body body) {
    const int unit = block.thread() % units;
    if (block.thread() >= lines * units || 8 * unit >= padded(args.H)) return;
#pragma unroll 1
    for (int row = block.thread() / units; row < rows; row += lines) body(row, unit);
  }

  static METATASNET_DEVICE Bfloat16* border(const Block& block, const Args& args, int frame, int channel) {
    return args.border + (std::int64_t{unit_of(block, args)} * args.frames + frame) * padded(args.H) + channel;
  }

  // Writes the frames of a that thread blocks on either side read.
  static METATASNET_DEVICE void share_borders(Block& block, const Args& args, int dilation, int first, int rows) {
    if (args.shares == 1) return;
    each_unit(block, args, 2 * dilation, [&](int i, int unit) {
      const int row = i < dilation ? i : rows + i - 2 * dilation;
      if (row < 0 || row >= rows) return;
      block.publish(reinterpret_cast<Words*>(border(block, args, first + row, 8 * unit)),
                    load_words(block.shared() + a_place(row, unit)));
    });
  }

  // Frames before and after this thread block's rows; 0 outside the signal.
  static METATASNET_DEVICE void read_borders(Block& block, const Args& args, int dilation, int first, int rows) {
    each_unit(block, args, 2 * dilation, [&](int i, int unit) {
      const int row = i < dilation ? i - dilation : rows + i - dilation;
      Words words{};
      if (first + row >= 0 && first + row < args.frames) {
        words = block.load_written(reinterpret_cast<const Words*>(border(block, args, first + row, 8 * unit)));
      }
      store_words(block.shared() + a_place(row, unit), words);
    });
  }

  // h, into the operand, on tensor cores: a tap is a product with a diagonal matrix. A warp has 16 channels, and of 16 rows
  // multiplies the first and second tap of eight channels in one product, the third in another of half its size.
  static METATASNET_DEVICE void depthwise(Block& block, const Args& args, const BlockNumbers& numbers, int first, int rows) {
    const int lane = block.lane(), dilation = numbers.dilation, channel = 16 * block.warp();
    if (channel >= padded(args.H)) return;
    std::uint32_t taps[2][3];
    float offset[2][4];
    const int diagonal = lane / 4, column = d_column(lane, 0);
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      const float* const of = factors(block) + channel + 8 * g;
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        const float tap = column == (diagonal & ~1) ? of[k * channels + diagonal] : 0.0f;
        taps[g][k] = diagonal % 2 ? pack_bfloat16(0.0f, tap) : pack_bfloat16(tap, 0.0f);
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const float* const each = of + 3 * channels + column + r % 2;
        offset[g][r] = each[0] + each[channels] + each[2 * channels];
      }
    }
    int two_taps = a_place(lane % 16 + (lane / 16 - 1) * dilation, channel / 8);
    int third_tap = a_place(lane % 16 + dilation, channel / 8 + lane / 16);
    int to = operand_place(lane % 16, channel / 8 + lane / 16);
    const bool at_an_end = first < dilation || first + rows + dilation > args.frames;
#pragma unroll 2
    for (int row = 0; row < rows; row += 16) {
      std::uint32_t a[2][4], last[4];
      block.load_matrices(a[0], two_taps);
      block.load_matrices(a[1], two_taps + 16);
      block.load_matrices(last, third_tap);
      two_taps += 16 * pitch;
      third_tap += 16 * pitch;
      float y[2][4];
#pragma unroll
      for (int g = 0; g < 2; ++g) block.mma_bfloat16(y[g], a[g], {taps[g][0], taps[g][1]}, offset[g]);
#pragma unroll
      for (int g = 0; g < 2; ++g) block.mma_bfloat16(y[g], {last[2 * g], last[2 * g + 1]}, taps[g][2]);
      if (at_an_end) remove_outside(block, args, first + row + diagonal, dilation, channel + column, y);
      const auto pair = [&](int g, int h) {
        return pack_bfloat16(prelu(y[g][2 * h], numbers.slope_2), prelu(y[g][2 * h + 1], numbers.slope_2));
      };
      block.store_matrices({pair(0, 0), pair(0, 1), pair(1, 0), pair(1, 1)}, to);
      to += 16 * kRowBytes;
    }
    block.sync_warp();
    const int end = (rows - 1) / 16 * 16 + lane % 16;  // this lane's row of the last sixteen
    if (end >= rows) store_words(block.shared() + to - 16 * kRowBytes, Words{});
  }

  // Takes what taps outside the signal add; their frames are 0. `frame` is the first of this thread's two rows.
  static METATASNET_DEVICE void remove_outside(const Block& block, const Args& args, int frame, int dilation, int channel,
                                               float (&y)[2][4]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int k = 0; k < 3; k += 2) {
        const int at = frame + 8 * h + (k - 1) * dilation;
        if (at >= 0 && at < args.frames) continue;
        const float* const of = factors(block) + (3 + k) * channels + channel;
#pragma unroll
        for (int g = 0; g < 2; ++g) {
          y[g][2 * h] -= of[8 * g];
          y[g][2 * h + 1] -= of[8 * g + 1];
        }
      }
    }
  }

  // norm_2(h), in place and to memory.
  static METATASNET_DEVICE void normalise(const Block& block, const Args& args, int i, int first, int rows) {
    const int unit = block.thread() % units, channel = 8 * unit, line = block.thread() / units;
    if (block.thread() >= lines * units || channel >= padded(args.H)) return;
    const int ld = args.blocks * padded(args.H);
    const Eight scale = load_eight(factors(block) + channel), constant = load_eight(factors(block) + channels + channel);
    Bfloat16* out = args.out + (std::int64_t{unit_of(block, args)} * args.frames + first + line) * ld +
                    i * padded(args.H) + channel;
    auto* at = reinterpret_cast<Bfloat16*>(block.shared() + operand_place(line, unit));
    const std::int64_t step = std::int64_t{lines} * ld;
#pragma unroll 2
    for (int row = line; row < rows; row += lines) {
      Eight h = load_eight(at);
#pragma unroll
      for (int c = 0; c < 8; ++c) h.v[c] = h.v[c] * scale.v[c] + constant.v[c];
      store_eight(at, h);
      store_eight(out, h);
      at += lines * kRowBytes / 2;
      out += step;
    }
  }
};

}  // namespace metatasnet::METATASNET_DEVICES
