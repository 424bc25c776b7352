// A tile of 128 frames by 160 outputs of a 1x1 convolution: the pipeline from global memory through shared memory.
//
// 160 = 2 warps x 10 fragments of 8 divides exactly. A few stages of a 64-byte chunk of the sum (8 KiB of frames, 10 KiB
// of weights) are under way at once; where both factors stay in shared memory, all chunks are.
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
constexpr int kWeightBytes = kColumns * kChunkBytes;
constexpr int kStageBytes = kFrameBytes + kWeightBytes;
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
  static constexpr int stages = kStages, bytes = kStageBytes;
};
template <int count>
struct WeightsAlone {
  static constexpr int stages = count, bytes = kWeightBytes;
};

// Starts the copies of the first chunks; `load(stage, chunk)` starts those of one.
template <class Holds, class Load>
METATASNET_DEVICE void begin_loading(Block& block, char* stages, int chunks, Load load) {
#pragma unroll 1
  for (int chunk = 0; chunk < Holds::stages - 1; ++chunk) {
    if (chunk < chunks) load(stages + chunk * Holds::bytes, chunk);
    block.commit();
  }
}

// sum += A B over `chunks` chunks that begin_loading began to load; `active` is whether this warp computes. `frames` are those
// that stay, chunk by chunk.
template <class Arithmetic, class Holds, bool activate, class Load>
METATASNET_DEVICE void multiply_loaded(Block& block, char* stages, const char* frames, int chunks, bool active,
                                       float slope, Load load, Accumulators& sum) {
  constexpr bool stay = !std::is_same_v<Holds, FramesAndWeights>;
  const WarpPlace place(block);
#pragma unroll 1
  for (int chunk = 0; chunk < chunks; ++chunk) {
    block.template wait<Holds::stages - 2>();
    block.sync();  // everybody's copies of this chunk are there, and everybody is done with the chunk before
    const int next = chunk + Holds::stages - 1;
    if (next < chunks) load(stages + next % Holds::stages * Holds::bytes, next);
    block.commit();
    if (active) {
      const char* stage = stages + chunk % Holds::stages * Holds::bytes;
      const char* a = stay ? frames + chunk * kFrameBytes : stage;
      const char* b = stay ? stage : stage + kFrameBytes;
      Arithmetic::template multiply<activate>(block, a, b, place.row, place.column, slope, sum);
    }
  }
  block.template wait<0>();
  block.sync();
}

// Until at most `pending` of this thread's groups are under way, or fewer.
METATASNET_DEVICE void wait_for(Block& block, int pending) {
  if (pending >= 4) return block.wait<4>();
  if (pending == 3) return block.wait<3>();
  if (pending == 2) return block.wait<2>();
  if (pending == 1) return block.wait<1>();
  block.wait<0>();
}

// sum += A B of frames and weights that all lie in shared memory, chunk by chunk. Each chunk's copies are the thread's newest
// groups, in turn: a chunk is multiplied as soon as it is there.
template <class Arithmetic>
METATASNET_DEVICE void multiply_resident(Block& block, const char* frames, const char* weights, int chunks, bool active,
                                         Accumulators& sum) {
  const WarpPlace place(block);
#pragma unroll 1
  for (int chunk = 0; chunk < chunks; ++chunk) {
    wait_for(block, chunks - 1 - chunk);
    block.sync();
    if (!active) continue;
    Arithmetic::template multiply<false>(block, frames + chunk * kFrameBytes, weights + chunk * kWeightBytes, place.row,
                                         place.column, 0.0f, sum);
  }
  block.sync();
}

}  // namespace metatasnet::METATASNET_DEVICES
