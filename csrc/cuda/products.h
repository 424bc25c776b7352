// Launches of the 1x1 convolutions, compiled once for each arithmetic (products_*.cu).
#pragma once

#include "cuda/launch.h"
#include "cuda/mix.h"

namespace metatasnet::METATASNET_DEVICES {

METATASNET_BOTH inline int column_tiles(int outputs) { return (outputs + kColumns - 1) / kColumns; }

// Grid: tiles of frames, tiles of outputs, units.
template <class Arithmetic, From from>
void launch_pointwise(const Stream& stream, std::int64_t units, const PointwiseArgs& args);
template <class Arithmetic>
void launch_mix(const Stream& stream, std::int64_t units, const MixArgs& args);
void launch_mix_conv(const Stream& stream, std::int64_t units, const MixArgs& args);

}  // namespace metatasnet::METATASNET_DEVICES
