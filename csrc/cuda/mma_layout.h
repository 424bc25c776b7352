// Return the element that each lane of a warp holds in each register, for mma.sync and ldmatrix.
//
// Source: PTX ISA, "Warp level matrix multiply-accumulate instructions", fragments of m16n8k16 (.bf16) and m16n8k8
// (.tf32). In units of 32-bit words both are the same: a row of A has eight words, so has a column of B; a word is two
// bfloat16 or one tf32.
#pragma once

#include "cuda/device.h"

namespace metatasnet::METATASNET_DEVICES {

constexpr int kFragmentRows = 16;    // rows of A and D
constexpr int kFragmentColumns = 8;  // columns of B and D
constexpr int kFragmentWords = 8;    // along the sum

// A: 16 rows of 8 words; four registers.
METATASNET_BOTH constexpr int a_row(int lane, int r) { return lane / 4 + r % 2 * 8; }
METATASNET_BOTH constexpr int a_word(int lane, int r) { return lane % 4 + r / 2 * 4; }

// B: 8 columns of 8 words; two registers.
METATASNET_BOTH constexpr int b_column(int lane, int) { return lane / 4; }
METATASNET_BOTH constexpr int b_word(int lane, int r) { return lane % 4 + r * 4; }

// D: 16 rows of 8 columns; four registers.
METATASNET_BOTH constexpr int d_row(int lane, int r) { return lane / 4 + r / 2 * 8; }
METATASNET_BOTH constexpr int d_column(int lane, int r) { return lane % 4 * 2 + r % 2; }

// ldmatrix.x4: register `r` of a lane is word lane % 4 of the row that lane matrix_source(lane, r) names.
METATASNET_BOTH constexpr int matrix_source(int lane, int r) { return 8 * r + lane / 4; }
METATASNET_BOTH constexpr int matrix_word(int lane) { return lane % 4; }

}  // namespace metatasnet::METATASNET_DEVICES
