// The three arithmetics of the 1x1 convolutions: what is stored, and how a warp multiplies a chunk of the sum.
//
// A warp owns 32 rows by 80 columns of the tile, as 2 x 10 fragments of 16 x 8. A chunk is 64 bytes of each row: 32
// bfloat16 or 16 float32, in four units of 16 bytes, swizzled so that the eight rows of a matrix lie in different banks.
#pragma once

#include "cuda/block.h"
#include "cuda/mma_layout.h"

namespace metatasnet::METATASNET_DEVICES {

constexpr int kWarpRows = 32;
constexpr int kWarpColumns = 80;
constexpr int kRowFragments = kWarpRows / kFragmentRows;
constexpr int kColumnFragments = kWarpColumns / kFragmentColumns;
constexpr int kChunkBytes = 64;

// Register `r` of fragment (i, j): row 16 i + d_row(lane, r), column 8 j + d_column(lane, r) of the warp's part.
struct Accumulators {
  float v[kRowFragments][kColumnFragments][4];
};

METATASNET_DEVICE int unit_offset(int row, int unit) { return row * kChunkBytes + ((unit ^ ((row >> 1) & 3)) << 4); }

// On tensor cores. `first_row` and `first_column` are the warp's in the tile; `slope` is that of the PReLU on A, if any.
template <class Self, bool activate>
METATASNET_DEVICE void multiply_on_tensor_cores(Block& block, const char* a, const char* b, int first_row,
                                                int first_column, float slope, Accumulators& sum) {
  const int matrix = block.lane() / 8, row = block.lane() % 8;
#pragma unroll 1  // both steps' fragments at once would not fit beside the accumulators
  for (int step = 0; step < 2; ++step) {
    std::uint32_t rows[kRowFragments][4];
#pragma unroll
    for (int i = 0; i < kRowFragments; ++i) {
      const int at = first_row + kFragmentRows * i + matrix % 2 * 8 + row;
      block.load_matrices(rows[i], a + unit_offset(at, 2 * step + matrix / 2));
#pragma unroll
      for (int r = 0; r < 4; ++r) rows[i][r] = Self::template operand<activate>(rows[i][r], slope);
    }
#pragma unroll
    for (int j = 0; j < kColumnFragments; j += 2) {
      std::uint32_t columns[4];
      const int at = first_column + kFragmentColumns * (j + matrix / 2) + row;
      block.load_matrices(columns, b + unit_offset(at, 2 * step + matrix % 2));
      const std::uint32_t first[2] = {columns[0], columns[1]}, second[2] = {columns[2], columns[3]};
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
  static constexpr const char* name = "bfloat16";

  static METATASNET_DEVICE float rounded(float value) { return to_float(stored<Bfloat16>(value)); }
  template <bool activate>
  static METATASNET_DEVICE std::uint32_t operand(std::uint32_t word, float slope) {
    if (!activate) return word;
    return pack_bfloat16(prelu(low_bfloat16(word), slope), prelu(high_bfloat16(word), slope));
  }
  static METATASNET_DEVICE void mma(Block& block, float (&d)[4], const std::uint32_t (&a)[4],
                                    const std::uint32_t (&b)[2]) {
    block.mma_bfloat16(d, a, b);
  }
  template <bool activate>
  static METATASNET_DEVICE void multiply(Block& block, const char* a, const char* b, int first_row, int first_column,
                                         float slope, Accumulators& sum) {
    multiply_on_tensor_cores<InBfloat16, activate>(block, a, b, first_row, first_column, slope, sum);
  }
};

// Float32 in memory; both factors of a product are rounded to 10 bits, weights when they are folded.
struct InTf32 {
  using Element = float;
  static constexpr const char* name = "tf32";

  static METATASNET_DEVICE float rounded(float value) { return round_tf32(value); }
  template <bool activate>
  static METATASNET_DEVICE std::uint32_t operand(std::uint32_t word, float slope) {
    return as_bits(round_tf32(activate ? prelu(as_float(word), slope) : as_float(word)));
  }
  static METATASNET_DEVICE void mma(Block& block, float (&d)[4], const std::uint32_t (&a)[4],
                                    const std::uint32_t (&b)[2]) {
    block.mma_tf32(d, a, b);
  }
  template <bool activate>
  static METATASNET_DEVICE void multiply(Block& block, const char* a, const char* b, int first_row, int first_column,
                                         float slope, Accumulators& sum) {
    multiply_on_tensor_cores<InTf32, activate>(block, a, b, first_row, first_column, slope, sum);
  }
};

// IEEE float32 on the ordinary cores, each lane the same places of the result as with fragments.
struct InFloat32 {
  using Element = float;
  static constexpr const char* name = "float32";

  static METATASNET_DEVICE float rounded(float value) { return value; }
  template <bool activate>
  static METATASNET_DEVICE void multiply(Block& block, const char* a, const char* b, int first_row, int first_column,
                                         float slope, Accumulators& sum) {
    const int lane = block.lane();
#pragma unroll 1
    for (int unit = 0; unit < kChunkBytes / 16; ++unit) {
      float rows[kRowFragments][2][4];
#pragma unroll
      for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const Words words = load_words(a + unit_offset(first_row + kFragmentRows * i + d_row(lane, 2 * h), unit));
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
          const Words words = load_words(b + unit_offset(first_column + kFragmentColumns * j + d_column(lane, c), unit));
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
