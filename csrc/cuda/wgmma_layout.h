// Where wgmma and TMA keep things in shared memory: rows of 128 bytes, swizzled, and the descriptors that name them.
//
// Sources: PTX ISA, "Asynchronous warpgroup level matrix instructions" (shared memory layout, matrix descriptor, fragment
// of D of m64nNk16) and "Tensors" (128-byte swizzle); CUDA driver API, cuTensorMapEncodeTiled.
#pragma once

#include "cuda/mma_layout.h"

#if defined(__CUDACC__)
#include <cuda.h>
#endif

namespace metatasnet::METATASNET_DEVICES {

constexpr int kRowBytes = 128;     // of a row of an operand in shared memory: 64 bfloat16
constexpr int kSwizzleBytes = 1024;  // after so many bytes, eight rows, the swizzle repeats: operands begin at multiples
constexpr int kProductRows = 64;   // rows of A and D of a wgmma, 16 for each of four warps
constexpr int kProductBytes = 32;  // of each row along the sum: 16 bfloat16

// The address in shared memory of the byte that would be at `address` without the swizzle: units of 16 bytes change places
// within their row, by the number of the row.
METATASNET_BOTH constexpr int swizzled(int address) { return address ^ (address >> 3 & 0x70); }

// The descriptor of an operand that begins `address` bytes into shared memory, its rows along the sum. Bits 0 to 13: the
// address; 16 to 29: unused with this swizzle, 1; 32 to 45: bytes from eight rows to the next eight; all three without
// their lowest four bits; 62, 63: 1, the 128-byte swizzle. Steps along the sum begin at the address of the step.
METATASNET_BOTH constexpr std::uint64_t matrix_descriptor(int address) {
  return static_cast<std::uint64_t>(address >> 4 & 0x3fff) | std::uint64_t{1} << 16 |
         std::uint64_t{kSwizzleBytes >> 4} << 32 | std::uint64_t{1} << 62;
}

constexpr int kDescriptorBytes = 16;  // that one more in a descriptor stands for

// A matrix in memory from which TMA copies boxes: bfloat16 in three dimensions, the first contiguous. The part of a box
// outside the sizes is filled with zeros and not read.
#if defined(__CUDACC__)
using TensorMap = CUtensorMap;
#else
struct alignas(64) TensorMap {
  const void* data;
  std::uint64_t sizes[3], strides[2];  // elements; bytes from one to the next of the second and third dimension
  std::uint32_t box[2];                // elements of the first two dimensions; the first is a row of 128 bytes
  std::uint64_t unused[9];
};
static_assert(sizeof(TensorMap) == 128);  // as the driver's
#endif

}  // namespace metatasnet::METATASNET_DEVICES
