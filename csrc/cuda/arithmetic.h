// The four arithmetics of the 1x1 convolutions: what is stored, and how a warp multiplies a chunk of the sum.
//
// A warp owns 32 rows by 80 columns of the tile, as 2 x 10 fragments of 16 x 8. A chunk is 64 bytes of each row: 32
// bfloat16 or 16 float32, in four units of 16 bytes, swizzled so that the eight rows of a matrix lie in different
// banks.
#pragma once

#include "cuda/block.h"
#include "cuda/mma_layout.h"

namespace metatasnet::METATASNET_DEVICES {

constexpr int kWarpRows = 32;
constexpr int kWarpColumns = 80;
constexpr int kRowFragments = kWarpRows / kFragmentRows;
constexpr int kColumnFragments = kWarpColumns / kFragmentColumns;
constexpr int kRowWarps = 4;  // that share the rows of a tile
constexpr int kChunkBytes = 64;

// A thread's sums of a tile: register `r` of fragment (i, j) is row row(block, i) + d_row(lane, r), column column(block) +
// 8 j + d_column(lane, r). `threads` threads have the whole tile.
struct Accumulators {
  static constexpr int threads = 2 * kRowWarps * kWarp, fragments = kColumnFragments;
  static constexpr int apart = kFragmentRows;  // rows from one fragment to the next below
  float v[kRowFragments][fragments][4];

  static METATASNET_DEVICE int row(const Block& block, int i) {
    return block.warp() % kRowWarps * kWarpRows + apart * i;
  }
  static METATASNET_DEVICE int column(const Block& block) { return block.warp() / kRowWarps * kWarpColumns; }
};

METATASNET_DEVICE int unit_offset(int row, int unit) { return row * kChunkBytes + ((unit ^ ((row >> 1) & 3)) << 4); }

// Offset at which this lane's reads of a warp's part of a chunk begin, counted from the start of the frames and of the
// weights.
//
// Rows 8 apart are swizzled alike, and the units of the second step differ from those of the first in one bit, so all
// other offsets are these plus a constant.
struct LanePlace {
  int a, b;

  METATASNET_DEVICE LanePlace(const Block& block, int first_row, int first_column) {
    const int matrix = block.lane() / 8, row = block.lane() % 8;
    a = unit_offset(first_row + matrix % 2 * 8 + row, matrix / 2);
    b = unit_offset(first_column + matrix / 2 * 8 + row, matrix % 2);
  }
};
constexpr int kSecondStep = 2 << 4;  // flipped in the offset of a unit

// On tensor cores: multiply chunks of A and B that begin `a` and `b` bytes after block.shared(). `slope` belongs to the
// PReLU on A.
template <class Self, bool activate>
METATASNET_DEVICE void multiply_on_tensor_cores(Block& block, int a, int b, const LanePlace& lane, float slope,
                                                Accumulators& sum) {
#pragma unroll Self::steps_at_once
  for (int step = 0; step < 2; ++step) {
    const int a_at = a + (lane.a ^ step * kSecondStep), b_at = b + (lane.b ^ step * kSecondStep);
    typename Self::Operand rows[kRowFragments][4];
#pragma unroll
    for (int i = 0; i < kRowFragments; ++i) {
      std::uint32_t words[4];
      block.load_matrices(words, a_at + i * kFragmentRows * kChunkBytes);
#pragma unroll
      for (int r = 0; r < 4; ++r) rows[i][r] = Self::template operand<activate>(words[r], slope);
    }
#pragma unroll
    for (int j = 0; j < kColumnFragments; j += 2) {
      std::uint32_t words[4];
      block.load_matrices(words, b_at + j * kFragmentColumns * kChunkBytes);
      const typename Self::Operand first[2] = {Self::weight(words[0]), Self::weight(words[1])};
      const typename Self::Operand second[2] = {Self::weight(words[2]), Self::weight(words[3])};
#pragma unroll
      for (int i = 0; i < kRowFragments; ++i) {
        Self::mma(block, sum.v[i][j], rows[i], first);
        Self::mma(block, sum.v[i][j + 1], rows[i], second);
      }
    }
  }
}

struct InBfloat16 {
  using Element = Bfloat16;
  using Operand = std::uint32_t;
  using Place = LanePlace;
  static constexpr int steps_at_once = 2;  // of a chunk's two, unrolled

  static METATASNET_DEVICE float rounded(float value) { return to_float(stored<Bfloat16>(value)); }
  template <bool activate>
  static METATASNET_DEVICE std::uint32_t operand(std::uint32_t word, float slope) {
    if (!activate) return word;
    return pack_bfloat16(prelu(low_bfloat16(word), slope), prelu(high_bfloat16(word), slope));
  }
  static METATASNET_DEVICE std::uint32_t weight(std::uint32_t word) { return word; }
  static METATASNET_DEVICE void mma(Block& block, float (&d)[4], const std::uint32_t (&a)[4],
                                    const std::uint32_t (&b)[2]) {
    block.mma_bfloat16(d, a, b);
  }
  template <bool activate>
  static METATASNET_DEVICE void multiply(Block& block, int a, int b, const Place& place, float slope,
                                         Accumulators& sum) {
    multiply_on_tensor_cores<InBfloat16, activate>(block, a, b, place, slope, sum);
  }
};

// Float32 in memory. Both factors of a product are rounded to 10 bits; weights are rounded when they are folded.
struct InTf32 {
  using Element = float;
  using Operand = std::uint32_t;
  using Place = LanePlace;
  static constexpr int steps_at_once = 2;

  static METATASNET_DEVICE float rounded(float value) { return round_tf32(value); }
  template <bool activate>
  static METATASNET_DEVICE std::uint32_t operand(std::uint32_t word, float slope) {
    return as_bits(round_tf32(activate ? prelu(as_float(word), slope) : as_float(word)));
  }
  static METATASNET_DEVICE std::uint32_t weight(std::uint32_t word) { return word; }
  static METATASNET_DEVICE void mma(Block& block, float (&d)[4], const std::uint32_t (&a)[4],
                                    const std::uint32_t (&b)[2]) {
    block.mma_tf32(d, a, b);
  }
  template <bool activate>
  static METATASNET_DEVICE void multiply(Block& block, int a, int b, const Place& place, float slope,
                                         Accumulators& sum) {
    multiply_on_tensor_cores<InTf32, activate>(block, a, b, place, slope, sum);
  }
};

// Float32 in memory, products of split factors: x = big + small, big is x rounded to 10 bits of mantissa, small is the rest,
// of which the tensor cores read 10 bits. x w = small_x big_w + big_x small_w + big_x big_w, added up in float32.
//
// A factor errs by 2^-21 at most, and small_x small_w, at most 2^-22 |x w|, is left out: a product errs by less than 2^-19.6
// |x w|, a float32 product by 2^-24. Tensor cores cut sums instead of rounding them, which in a long sum of like
// signs would cost several bits, so they sum only 8 products; an ordinary addition, rounded, adds these to the sum.
//
// If big is not finite, big is 0 and small is x (infinity - infinity would be NaN): a frame's infinity or NaN gives what
// it gives in float32, and values within 2^-12 of the largest one keep 10 bits. Weights must be finite; infinity gives NaN.
// Source: Ootomo and Yokota 2022, "Recovering single precision accuracy from Tensor Cores while surpassing the FP32
// theoretical peak performance"; Fasi et al. 2021, "Numerical behavior of NVIDIA tensor cores".
struct InSplitTf32 {
  struct Operand {
    std::uint32_t big, small;
  };
  using Element = float;
  using Place = LanePlace;
  static constexpr int steps_at_once = 1;  // with two, registers spill

  template <bool activate>
  static METATASNET_DEVICE Operand operand(std::uint32_t word, float slope) {
    const float value = activate ? prelu(as_float(word), slope) : as_float(word);
    const float big = to_10_bits(value);
    return split(value, fabsf(big) < INFINITY ? big : 0.0f);
  }
  static METATASNET_DEVICE Operand weight(std::uint32_t word) { return split(as_float(word), to_10_bits(as_float(word))); }
  static METATASNET_DEVICE void mma(Block& block, float (&d)[4], const Operand (&a)[4], const Operand (&b)[2]) {
    const std::uint32_t big[4] = {a[0].big, a[1].big, a[2].big, a[3].big};
    const std::uint32_t small[4] = {a[0].small, a[1].small, a[2].small, a[3].small};
    const std::uint32_t big_weights[2] = {b[0].big, b[1].big}, small_weights[2] = {b[0].small, b[1].small};
    float step[4] = {};
    block.mma_tf32(step, small, big_weights);
    block.mma_tf32(step, big, small_weights);
    block.mma_tf32(step, big, big_weights);
#pragma unroll
    for (int r = 0; r < 4; ++r) d[r] += step[r];
  }
  template <bool activate>
  static METATASNET_DEVICE void multiply(Block& block, int a, int b, const Place& place, float slope,
                                         Accumulators& sum) {
    multiply_on_tensor_cores<InSplitTf32, activate>(block, a, b, place, slope, sum);
  }

 private:
  static METATASNET_DEVICE float to_10_bits(float value) { return as_float((as_bits(value) + 0x1000u) & 0xffffe000u); }
  static METATASNET_DEVICE Operand split(float value, float big) { return {as_bits(big), as_bits(value - big)}; }
};

// IEEE float32 on the ordinary cores; each lane holds the same places of the result as with fragments.
struct InFloat32 {
  using Element = float;
  struct Place {
    int first_row, first_column;

    METATASNET_DEVICE Place(const Block&, int row, int column) : first_row(row), first_column(column) {}
  };

  static METATASNET_DEVICE float rounded(float value) { return value; }
  template <bool activate>
  static METATASNET_DEVICE void multiply(Block& block, int a, int b, const Place& place, float slope,
                                         Accumulators& sum) {
    const int lane = block.lane();
    const char *const frames = block.shared() + a, *const weights = block.shared() + b;
#pragma unroll 1
    for (int unit = 0; unit < kChunkBytes / 16; ++unit) {
      float rows[kRowFragments][2][4];
#pragma unroll
      for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int row = place.first_row + kFragmentRows * i + d_row(lane, 2 * h);
          const Words words = load_words(frames + unit_offset(row, unit));
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const float value = as_float(words.word[k]);
            rows[i][h][k] = activate ? prelu(value, slope) : value;
          }
        }
      }
#pragma unroll
      for (int j = 0; j < kColumnFragments; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int column = place.first_column + kFragmentColumns * j + d_column(lane, c);
          const Words words = load_words(weights + unit_offset(column, unit));
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const float weight = as_float(words.word[k]);
#pragma unroll
            for (int i = 0; i < kRowFragments; ++i) {
              sum.v[i][j][c] += rows[i][0][k] * weight;
              sum.v[i][j][2 + c] += rows[i][1][k] * weight;
            }
          }
        }
      }
    }
  }
};

}  // namespace metatasnet::METATASNET_DEVICES
