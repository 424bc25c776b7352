// Reads tensors of the caller: any distance between frames, float32 or bfloat16, without padding.
#pragma once

#include "cpu/isa/modes.h"

namespace metatasnet::METATASNET_ISA {

// Call visit(column, values) for the columns of one frame, kLanes at a time; lanes beyond the last channel are 0.
template <class T, class Visit>
METATASNET_INLINE void visit_frame(const T* frame, int channels, Visit visit) {
  int c = 0;
  for (; c + kLanes <= channels; c += kLanes) visit(c, load(frame + c));
  if (c < channels) visit(c, load_first(frame + c, channels - c));
}

template <class Visit>
METATASNET_INLINE void visit_frame(const Source& source, std::int64_t frame, Visit visit) {
  const std::int64_t at = frame * source.stride;
  if (source.is_bfloat16) {
    visit_frame(static_cast<const bfloat16*>(source.data) + at, source.channels, visit);
  } else {
    visit_frame(static_cast<const float*>(source.data) + at, source.channels, visit);
  }
}

// kLanes channels of one frame from `column` on; 0 after the last one.
METATASNET_INLINE Vec load_columns(const Source& source, std::int64_t frame, int column) {
  const int left = source.channels - column;
  const std::int64_t at = frame * source.stride + column;
  if (source.is_bfloat16) return load_first(static_cast<const bfloat16*>(source.data) + at, left);
  return load_first(static_cast<const float*>(source.data) + at, left);
}

}  // namespace metatasnet::METATASNET_ISA
