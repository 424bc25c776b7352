// Launches of the 1x1 convolutions, compiled once for each arithmetic (products_*.cu).
#pragma once

#include "cuda/launch.h"
#include "cuda/mix.h"

namespace metatasnet::METATASNET_DEVICES {

using device::Products;

METATASNET_BOTH inline int column_tiles(int outputs) { return (outputs + kColumns - 1) / kColumns; }

// Grid: tiles of frames, tiles of outputs, units.
template <class Arithmetic, From from>
void launch_pointwise(const Stream& stream, std::int64_t units, const PointwiseArgs& args);
// The same in bfloat16 by wgmma (wgmma.h), on compute capability 9.0 alone; From::frames or frames_and_share.
template <From from>
void launch_wgmma(const Stream& stream, std::int64_t units, const PointwiseArgs& args);
template <class Arithmetic>
void launch_mix(const Stream& stream, std::int64_t units, const MixArgs& args);
void launch_mix_conv(const Stream& stream, std::int64_t units, const MixArgs& args);

// The product of frames, by wgmma if the stage was made so.
template <class Arithmetic, From from>
void launch_frames(const Stream& stream, std::int64_t units, const PointwiseArgs& args, Products products) {
  if constexpr (std::is_same_v<Arithmetic, InBfloat16>) {
    if (products == Products::wgmma) return launch_wgmma<from>(stream, units, args);
  }
  launch_pointwise<Arithmetic, from>(stream, units, args);
}

}  // namespace metatasnet::METATASNET_DEVICES
