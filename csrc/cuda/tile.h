// A tile of 128 frames by 160 outputs of a 1x1 convolution: the pipeline from global memory through shared memory.
//
// 160 = 2 warps x 10 fragments of 8 divides exactly. Four stages of a 64-byte chunk of the sum (8 KiB of frames, 10 KiB
// of weights) are under way at once.
#pragma once

#include <type_traits>

#include "cuda/arithmetic.h"

namespace metatasnet::METATASNET_DEVICES {

constexpr int kTile = 128;     // frames of every tile, also of those without a product: statistics are per tile
constexpr int kColumns = 160;  // outputs
constexpr int kThreads = 256;
constexpr int kRowWarps = kTile / kWarpRows;
constexpr int kStages = 4;
constexpr int kFrameBytes = kTile * kChunkBytes;
constexpr int kStageBytes = kFrameBytes + kColumns * kChunkBytes;
constexpr int kPipelineBytes = kStages * kStageBytes;
constexpr int kUnits = kChunkBytes / 16;

METATASNET_BOTH inline int tiles_of(std::int64_t frames) { return static_cast<int>((frames + kTile - 1) / kTile); }

// Where this warp's part of the tile begins.
struct WarpPlace {
  int row, column;
  explicit METATASNET_DEVICE WarpPlace(const Block& block)
      : row(block.warp() % kRowWarps * kWarpRows), column(block.warp() / kRowWarps * kWarpColumns) {}
};

// Rows of 64-byte chunks into a stage. `row_address(row)` is null where there is none: those rows are zero.
template <class RowAddress>
METATASNET_DEVICE void load_rows(Block& block, char* to, int rows, RowAddress row_address) {
#pragma unroll 1  // the addresses of several copies at once would not fit beside the accumulators
  for (int i = block.thread(); i < rows * kUnits; i += kThreads) {
    const int row = i / kUnits, unit = i % kUnits;
    const char* from = row_address(row, unit);
    block.copy_async(to + unit_offset(row, unit), from, from != nullptr);
  }
}

METATASNET_DEVICE void clear(Accumulators& sum) {
#pragma unroll
  for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
    for (int j = 0; j < kColumnFragments; ++j) {
#pragma unroll
      for (int r = 0; r < 4; ++r) sum.v[i][j][r] = 0.0f;
    }
  }
}

// What the stages of a product hold: a chunk of frames and weights, or of weights alone beside frames that stay.
struct FramesAndWeights {
  static constexpr int bytes = kStageBytes;
};
struct WeightsAlone {
  static constexpr int bytes = kStageBytes - kFrameBytes;
};

// Starts the copies of the first chunks; `load(stage, chunk)` starts those of one.
template <class Holds, class Load>
METATASNET_DEVICE void begin_loading(Block& block, char* stages, int chunks, Load load) {
#pragma unroll 1
  for (int chunk = 0; chunk < kStages - 1; ++chunk) {
    if (chunk < chunks) load(stages + chunk * Holds::bytes, chunk);
    block.commit();
  }
}

// sum += A B over `chunks` chunks that begin_loading began to load; `active` is whether this warp computes. `frames` are those
// that stay, chunk by chunk.
template <class Arithmetic, class Holds, bool activate, class Load>
METATASNET_DEVICE void multiply_loaded(Block& block, char* stages, const char* frames, int chunks, bool active,
                                       float slope, Load load, Accumulators& sum) {
  constexpr bool stay = std::is_same_v<Holds, WeightsAlone>;
  const WarpPlace place(block);
#pragma unroll 1
  for (int chunk = 0; chunk < chunks; ++chunk) {
    block.template wait<kStages - 2>();
    block.sync();  // everybody's copies of this chunk are there, and everybody is done with the chunk before
    const int next = chunk + kStages - 1;
    if (next < chunks) load(stages + next % kStages * Holds::bytes, next);
    block.commit();
    if (active) {
      const char* stage = stages + chunk % kStages * Holds::bytes;
      const char* a = stay ? frames + chunk * kFrameBytes : stage;
      const char* b = stay ? stage : stage + kFrameBytes;
      Arithmetic::template multiply<activate>(block, a, b, place.row, place.column, slope, sum);
    }
  }
  block.template wait<0>();
  block.sync();
}

}  // namespace metatasnet::METATASNET_DEVICES
