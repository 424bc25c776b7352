// Launches of the 1x1 convolutions, compiled once for each arithmetic (products_*.cu).
#pragma once

#include "cuda/launch.h"
#include "cuda/mix.h"
#include "cuda/persistent.h"

namespace metatasnet::METATASNET_DEVICES {

using device::Products;

METATASNET_BOTH inline int column_tiles(int outputs) { return (outputs + kColumns - 1) / kColumns; }

// Grid: tiles of frames, tiles of outputs, units.
template <class Arithmetic, From from>
void launch_pointwise(const Stream& stream, std::int64_t units, const PointwiseArgs& args);
// The same in bfloat16 by wgmma (wgmma.h), on compute capability 9.0 alone; all but From::signal.
template <From from>
void launch_wgmma(const Stream& stream, std::int64_t units, const PointwiseArgs& args);
// The units of a masking network that one persistent launch serves; 0: none, because the device does not run enough blocks at
// once. On compute capability 9.0 alone.
int persistent_units(const Stream& stream, const Shares& shares);
// Launches for all units, `together` at once. conv (blocks, instruments, H, padded(B)), mix (blocks - 1, instruments, B,
// padded(H)); the tensor maps of `args` are made here.
void launch_persistent(const Stream& stream, std::int64_t units, int together, const Shares& shares,
                       const PersistentArgs& args, const void* conv, const void* mix);
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
