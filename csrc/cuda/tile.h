// A tile of 128 frames by 160 outputs of a 1x1 convolution: the pipeline from global memory through shared memory.
//
// 160 = 2 warps x 10 fragments of 8, without remainder. A few stages of a 64-byte chunk of the sum (8 KiB of frames, 10
// KiB of weights) are in flight at once.
#pragma once

#include "cuda/arithmetic.h"

namespace metatasnet::METATASNET_DEVICES {

constexpr int kTile = 128;     // frames of every tile, also in passes without a product: statistics are per tile
constexpr int kColumns = 160;  // outputs
constexpr int kThreads = Accumulators::threads;
static_assert(kTile == kRowWarps * kWarpRows);
constexpr int kFrameBytes = kTile * kChunkBytes;
constexpr int kWeightBytes = kColumns * kChunkBytes;
constexpr int kStageBytes = kFrameBytes + kWeightBytes;
constexpr int kUnits = kChunkBytes / 16;

METATASNET_BOTH inline int tiles_of(std::int64_t frames) { return static_cast<int>((frames + kTile - 1) / kTile); }

// Start of this warp's part of the tile.
struct WarpPlace {
  int row, column;
  explicit METATASNET_DEVICE WarpPlace(const Block& block)
      : row(Accumulators::row(block, 0)), column(Accumulators::column(block)) {}
};

// The part of a tile's rows that a thread copies, chunk after chunk: 16-byte unit thread % 4 of rows thread / 4, and of every
// 64th row from there on. Addresses advance by a chunk; rows and units that are not there are zero. `whole`: all units
// are there.
template <int rows, bool whole>
class RowCopies {
 public:
  // `from` is the address of row 0, even if only rows [low, high) exist; `units` of each row exist.
  METATASNET_DEVICE RowCopies(const Block& block, const char* from, std::int64_t row_bytes, int low, int high,
                              int units) {
    const int row = block.thread() / kUnits, unit = block.thread() % kUnits;
    from_ = from + row * row_bytes + unit * 16;
    step_ = static_cast<int>(kApart * row_bytes);
    to_ = unit_offset(row, unit);
    left_ = units - unit;
    last_ = row + (kCount - 1) * kApart < rows;
#pragma unroll
    for (int k = 0; k < kCount; ++k) exists_[k] = row + k * kApart >= low && row + k * kApart < high;
  }

  METATASNET_DEVICE void skip(int chunks) {
    from_ += chunks * kChunkBytes;
    if (!whole) left_ -= chunks * kUnits;
  }

  // Copies the next chunk of every row to `to` bytes after block.shared().
  METATASNET_DEVICE void load(Block& block, int to) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      if (rows % kApart && k + 1 == kCount && !last_) continue;
      block.copy_async(to + to_ + k * kApart * kChunkBytes, from_ + static_cast<std::int64_t>(k) * step_,
                       exists_[k] && (whole || left_ > 0));
    }
    from_ += kChunkBytes;
    if (!whole) left_ -= kUnits;
  }

 private:
  static constexpr int kApart = kThreads / kUnits, kCount = (rows + kApart - 1) / kApart;
  static_assert(kApart % 8 == 0);  // rows at this distance are swizzled alike

  const char* from_;
  int step_, to_, left_;
  bool last_, exists_[kCount];
};

template <class Sums>
METATASNET_DEVICE void clear(Sums& sum) {
#pragma unroll
  for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
    for (int j = 0; j < Sums::fragments; ++j) {
#pragma unroll
      for (int r = 0; r < 4; ++r) sum.v[i][j][r] = 0.0f;
    }
  }
}

// Contents of a product's pipeline stages: a chunk of frames and weights, or only weights if the frames stay in place.
template <int count>
struct FramesAndWeights {
  static constexpr int stages = count, bytes = kStageBytes;
  static constexpr bool frames_stay = false;
};
template <int count>
struct WeightsAlone {
  static constexpr int stages = count, bytes = kWeightBytes;
  static constexpr bool frames_stay = true;
};

constexpr int kStages = 4;
constexpr int kPipelineBytes = kStages * kStageBytes;

// Starts the copies of the first chunks. `load(stage)` starts those of the next chunk, to `stage` bytes after
// block.shared(); the stages begin at `stages`.
template <class Holds, class Load>
METATASNET_DEVICE void begin_loading(Block& block, int stages, int chunks, Load load) {
#pragma unroll 1
  for (int chunk = 0; chunk < Holds::stages - 1; ++chunk) {
    if (chunk < chunks) load(stages + chunk * Holds::bytes);
    block.commit();
  }
}

// sum += A B over `chunks` chunks that begin_loading began to load. Warps that are not `active` only load. Frames that stay
// in shared memory begin at `frames`, chunk by chunk.
template <class Arithmetic, class Holds, bool activate, class Load>
METATASNET_DEVICE void multiply_loaded(Block& block, int stages, int frames, int chunks, bool active, float slope,
                                       Load load, Accumulators& sum) {
  const WarpPlace warp(block);
  const typename Arithmetic::Place place(block, warp.row, warp.column);
#pragma unroll 1
  for (int chunk = 0; chunk < chunks; ++chunk) {
    block.template wait<Holds::stages - 2>();
    block.sync();  // all threads' copies of this chunk have arrived, and all threads are done with the chunk before
    const int next = chunk + Holds::stages - 1;
    if (next < chunks) load(stages + next % Holds::stages * Holds::bytes);
    block.commit();
    if (active) {
      const int stage = stages + chunk % Holds::stages * Holds::bytes;
      Arithmetic::template multiply<activate>(block, Holds::frames_stay ? frames + chunk * kFrameBytes : stage,
                                              Holds::frames_stay ? stage : stage + kFrameBytes, place, slope, sum);
    }
  }
  block.template wait<0>();
  block.sync();
}

}  // namespace metatasnet::METATASNET_DEVICES
