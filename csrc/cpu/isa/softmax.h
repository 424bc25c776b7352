// The softmax over the instruments, for any number of them.
#pragma once

#include "cpu/isa/vector.h"
#include "cpu/passes.h"

namespace metatasnet::METATASNET_ISA {

// The number of instruments: known to the compiler for the usual four, so that their values stay in registers.
template <int kCount>
struct InstrumentCount {
  int operator()() const { return kCount; }
};
template <>
struct InstrumentCount<0> {
  int count;
  int operator()() const { return count; }
};

// Call run(count) with the number of instruments.
template <class Run>
METATASNET_INLINE void with_instruments(int count, Run run) {
  if (count == 4) {
    run(InstrumentCount<4>{});
  } else {
    run(InstrumentCount<0>{count});
  }
}

template <class Count, class Body>
METATASNET_INLINE void each_instrument(Count count, Body body) {
  const int number = count();
#pragma GCC unroll 4
  for (int i = 0; i < number; ++i) body(i);
}

// m[i] becomes exp(m[i] - highest); returns their sum. One instrument alone shares with a constant 0, which makes its
// mask the sigmoid of m[0].
template <class Count>
METATASNET_INLINE Vec exponentials(Vec* m, Count count) {
  Vec highest = count() == 1 ? Vec{} : m[1];
  each_instrument(count, [&](int i) { highest = maximum(highest, m[i]); });
  Vec sum = count() == 1 ? exp_nonpositive(Vec{} - highest) : Vec{};
  each_instrument(count, [&](int i) {
    m[i] = exp_nonpositive(m[i] - highest);
    sum += m[i];
  });
  return sum;
}

}  // namespace metatasnet::METATASNET_ISA
