// Splits the frames of a tile by which of their taps lie inside the signal.
#pragma once

#include "cpu/isa/vector.h"

namespace metatasnet::METATASNET_ISA {

struct Yes {
  constexpr bool operator()() const { return true; }
};
struct No {
  constexpr bool operator()() const { return false; }
};

METATASNET_INLINE std::int64_t clamp(std::int64_t x, std::int64_t low, std::int64_t high) {
  return x < low ? low : x > high ? high : x;
}

// Call visit(earlier, later, t) for the frames [first, first + rows) in order. `earlier` and `later` say, at compile
// time, whether t - reach and t + reach lie in the signal of `frames` frames.
template <class Visit>
METATASNET_INLINE void each_frame(std::int64_t first, int rows, std::int64_t frames, std::int64_t reach, Visit visit) {
  const std::int64_t last = first + rows;
  // Before `left` there is no earlier frame, from `right` on no later one.
  const std::int64_t left = clamp(reach, first, last), right = clamp(frames - reach, first, last);
  std::int64_t t = first;
  for (; t < left && t < right; ++t) visit(No{}, Yes{}, t);
  for (; t < right; ++t) visit(Yes{}, Yes{}, t);
  for (; t < left; ++t) visit(No{}, No{}, t);
  for (; t < last; ++t) visit(Yes{}, No{}, t);
}

}  // namespace metatasnet::METATASNET_ISA
