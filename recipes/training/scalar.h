// Numbers of activations: float, or bfloat16 that is rounded to the nearest even one.
#pragma once

#include <bit>
#include <cstdint>

namespace recipe {

struct bfloat {
  uint16_t bits;
};

inline float load(float x) { return x; }
inline float load(bfloat x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
inline void store(float& to, float x) { to = x; }
inline void store(bfloat& to, float x) {
  const uint32_t b = std::bit_cast<uint32_t>(x);
  to.bits = static_cast<uint16_t>((b + 0x7fff + ((b >> 16) & 1)) >> 16);
}

}  // namespace recipe
