// Checked while it is compiled: csrc/cuda/wgmma_layout.h against the figures and tables of the PTX ISA.
#include "cuda/wgmma_layout.h"

namespace metatasnet::emulated {

// "128-byte swizzle mode": the unit of 16 bytes that is stored at each place of eight rows of 128 bytes.
constexpr int kUnits[8][8] = {{0, 1, 2, 3, 4, 5, 6, 7}, {1, 0, 3, 2, 5, 4, 7, 6}, {2, 3, 0, 1, 6, 7, 4, 5},
                              {3, 2, 1, 0, 7, 6, 5, 4}, {4, 5, 6, 7, 0, 1, 2, 3}, {5, 4, 7, 6, 1, 0, 3, 2},
                              {6, 7, 4, 5, 2, 3, 0, 1}, {7, 6, 5, 4, 3, 2, 1, 0}};

constexpr bool swizzles_as_the_figure() {
  for (int row = 0; row < 24; ++row) {
    for (int place = 0; place < 8; ++place) {
      const int unit = kUnits[row % 8][place];
      for (int byte = 0; byte < 16; ++byte) {
        if (swizzled(128 * row + 16 * unit + byte) != 128 * row + 16 * place + byte) return false;
      }
    }
  }
  return true;
}
static_assert(swizzles_as_the_figure());

// "Matrix descriptor format": fields of an operand 0x2c460 bytes into shared memory.
constexpr std::uint64_t kDescriptor = matrix_descriptor(0x2c460);
constexpr std::uint64_t field(int first, int last) {
  return kDescriptor >> first & ((std::uint64_t{1} << (last - first + 1)) - 1);
}
static_assert(field(0, 13) == (0x2c460 & 0x3ffff) >> 4);  // matrix-descriptor-encode(start address)
static_assert(field(14, 15) == 0 && field(30, 31) == 0 && field(46, 48) == 0 && field(52, 61) == 0);
static_assert(field(32, 45) == (8 * 128) >> 4);  // stride dimension: from eight rows to the next eight
static_assert(field(49, 51) == 0);               // base offset: operands begin where the swizzle does
static_assert(field(62, 63) == 1);               // 128-byte swizzle

// "Register fragment for the matrix D" of m64nNk16: d_i of a lane of a warp.
constexpr bool fragments_as_the_formula() {
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 80; ++i) {
      const int row = lane / 4 + (i % 4 < 2 ? 0 : 8), column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      if (d_row(lane, i % 4) != row || kFragmentColumns * (i / 4) + d_column(lane, i % 4) != column) return false;
    }
  }
  return true;
}
static_assert(fragments_as_the_formula());

}  // namespace metatasnet::emulated
