// The masks of any number of instruments: the first ones share a softmax, each other one has a sigmoid.
#pragma once

#include <limits>

#include "cpu/isa/vector.h"
#include "cpu/passes.h"

namespace metatasnet::METATASNET_ISA {

// The number of instruments, and the number of those that share the softmax. For the usual four both are compile-time
// constants, so that the values stay in registers.
template <int kCount>
struct InstrumentCount {
  int operator()() const { return kCount; }
  int softmax() const { return kCount; }
};
template <>
struct InstrumentCount<0> {
  int count, shared;
  int operator()() const { return count; }
  int softmax() const { return shared; }
};

// Call run(count) with the number of instruments.
template <class Run>
METATASNET_INLINE void with_instruments(int count, int softmax, Run run) {
  if (count == 4 && softmax == 4) {
    run(InstrumentCount<4>{});
  } else {
    run(InstrumentCount<0>{count, softmax});
  }
}

template <class Count, class Body>
METATASNET_INLINE void each_instrument(Count count, Body body) {
  const int number = count();
#pragma GCC unroll 4
  for (int i = 0; i < number; ++i) body(i);
}

// Replace m[i] by `numerator` times the mask of instrument i. A sigmoid is a softmax over m[i] and 0.
template <class Count>
METATASNET_INLINE void masks(Vec* m, Count count, Vec numerator) {
  const int shared = count.softmax();
  if (shared > 0) {
    Vec highest = splat(std::numeric_limits<float>::lowest());
#pragma GCC unroll 4
    for (int i = 0; i < shared; ++i) highest = maximum(highest, m[i]);
    Vec sum = Vec{};
#pragma GCC unroll 4
    for (int i = 0; i < shared; ++i) {
      m[i] = exp_nonpositive(m[i] - highest);
      sum += m[i];
    }
    const Vec factor = numerator / sum;
#pragma GCC unroll 4
    for (int i = 0; i < shared; ++i) m[i] *= factor;
  }
  for (int i = shared; i < count(); ++i) {
    const Vec highest = maximum(Vec{}, m[i]);
    const Vec own = exp_nonpositive(m[i] - highest);
    m[i] = own * (numerator / (exp_nonpositive(Vec{} - highest) + own));
  }
}

}  // namespace metatasnet::METATASNET_ISA
