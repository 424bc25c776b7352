// The results of a product, for a later job.
#pragma once

#include "cpu/isa/gemm.h"
#include "cpu/isa/gemm_tiles.h"

namespace metatasnet::METATASNET_ISA {

// Writes the results of a product, past the caches: nothing reads them soon.
template <class T>
struct StreamRows {
  T* out;
  std::ptrdiff_t ld;

  METATASNET_INLINE void begin(int) {}
  template <int>
  METATASNET_INLINE void prefetch(int, int) {}
  template <bool kFull, int kTileRows>
  METATASNET_INLINE void tile(int panel, int first, int valid, Accumulators<kTileRows>& acc) {
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      if (!kFull && i >= valid) break;
      stream(out + (first + i) * ld + panel * kPanel, acc[i]);
    }
  }
  METATASNET_INLINE void end(int) { stream_end(); }
};

}  // namespace metatasnet::METATASNET_ISA
