// Memory layout of the values that the forward passes keep for the backward passes.
#pragma once

#include <cstdint>

#include "cpu/stage.h"

namespace metatasnet {

// Mean and 1 / deviation of a norm's groups.
struct GroupStatistics {
  float mean[kGroups], rstd[kGroups];
};

// Layout of the values that the masking network keeps for backward, for one (item, instrument): the norms' statistics,
// the inputs of the PReLUs, and the residual stream before each block (both in the storage type, `frames` rows each).
// This is a third of what autograd would keep; backward computes the other values again.
class KeptMask {
 public:
  KeptMask(const StageSizes& s, int storage_size, std::int64_t frames)
      : blocks_(s.blocks()),
        b_(frames * padded(s.B) * storage_size),
        h_(frames * padded(s.H) * storage_size),
        n_(frames * padded(s.N) * storage_size),
        statistics_((static_cast<std::int64_t>(sizeof(GroupStatistics)) * (4 + 2 * blocks_) + 63) / 64 * 64) {}

  std::int64_t bytes() const { return (statistics_ + (2 + blocks_) * b_ + 2 * blocks_ * h_ + n_ + 63) / 64 * 64; }

  // Norms in order of the network: norm_1, norm_2, norm_1 and norm_2 of each block, norm_3, norm_4.
  int norm_1() const { return 0; }
  int norm_2() const { return 1; }
  int block_norm(int block, int which) const { return 2 * block + 1 + which; }
  int norm_3() const { return 2 * blocks_ + 2; }
  int norm_4() const { return 2 * blocks_ + 3; }

  GroupStatistics* statistics(char* unit, int norm) const { return reinterpret_cast<GroupStatistics*>(unit) + norm; }
  const GroupStatistics* statistics(const char* unit, int norm) const {
    return reinterpret_cast<const GroupStatistics*>(unit) + norm;
  }

  // Offsets in bytes of the outputs of: the input convolution, the residual stream before a block, conv1d, the depthwise
  // convolution, the skip sum, mask_output.
  std::int64_t input() const { return statistics_; }
  std::int64_t x(int block) const { return statistics_ + b_ + block * (b_ + 2 * h_); }
  std::int64_t conv(int block) const { return x(block) + b_; }
  std::int64_t depthwise(int block) const { return conv(block) + h_; }
  std::int64_t skip() const { return x(blocks_); }
  std::int64_t output() const { return skip() + b_; }

 private:
  const std::int64_t blocks_, b_, h_, n_, statistics_;
};

// Row lengths of the values that the codec keeps for backward: the outputs of the filter bank and of the first bottleneck
// (encoder) and of the wide convolution (decoder), each after its ReLU.
struct KeptCodec {
  KeptCodec(const Stage& stage, const Passes& passes)
      : ld_bank(operand_ld(stage.sizes().bank(), passes.operand_size)),
        ld_latent(operand_ld(stage.sizes().N, passes.operand_size)),
        ld_wide(operand_ld(stage.sizes().wide(), passes.operand_size)) {}

  int ld_bank, ld_latent, ld_wide;  // elements from frame to frame, here and in the passes' scratch
};

}  // namespace metatasnet
