// The language of the kernels: plain C++ that nvcc compiles for GPUs, and any compiler for the host, where blocks are
// emulated (emulator/). Each has a namespace, metatasnet::cuda and metatasnet::emulated.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define METATASNET_DEVICES cuda
#define METATASNET_DEVICE __device__ __forceinline__
#define METATASNET_BOTH __host__ __device__
#else
#define METATASNET_DEVICES emulated
#define METATASNET_DEVICE inline
#define METATASNET_BOTH
#endif

// 1 where the target, or the emulator, has wgmma, TMA, mbarriers and clusters. The host's pass of nvcc compiles all of them.
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define METATASNET_HOPPER 0
#else
#define METATASNET_HOPPER 1
#endif

namespace metatasnet::METATASNET_DEVICES {

constexpr int kMostInstruments = 32;
constexpr int kWarp = 32;
constexpr int kChannels = 32;  // channels are stored in multiples of this

METATASNET_BOTH constexpr int padded(int channels) { return (channels + kChannels - 1) / kChannels * kChannels; }

struct alignas(16) Words {
  std::uint32_t word[4];
};

METATASNET_DEVICE float as_float(std::uint32_t bits) {
#if defined(__CUDACC__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

METATASNET_DEVICE std::uint32_t as_bits(float value) {
#if defined(__CUDACC__)
  return __float_as_uint(value);
#else
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

// Two floats rounded to nearest even, the first in the lower half.
METATASNET_DEVICE std::uint32_t pack_bfloat16(float low, float high) {
#if defined(__CUDACC__)
  std::uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#else
  const auto round = [](float value) -> std::uint32_t {
    const std::uint32_t bits = as_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;  // the hardware's NaN
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  };
  return round(low) | round(high) << 16;
#endif
}

METATASNET_DEVICE float low_bfloat16(std::uint32_t packed) { return as_float(packed << 16); }
METATASNET_DEVICE float high_bfloat16(std::uint32_t packed) { return as_float(packed & 0xffff0000u); }

// Round to 10 bits of mantissa, ties away from zero.
METATASNET_DEVICE float round_tf32(float value) {
#if defined(__CUDACC__)
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return __uint_as_float(bits);
#else
  const std::uint32_t bits = as_bits(value);
  if ((bits & 0x7f800000u) == 0x7f800000u) return value;
  return as_float((bits + 0x1000u) & 0xffffe000u);
#endif
}

// 1 / sqrt(value), within two units of the last place.
METATASNET_DEVICE float reciprocal_root(float value) {
#if defined(__CUDACC__)
  return rsqrtf(value);
#else
  return 1.0f / std::sqrt(value);
#endif
}

METATASNET_DEVICE float prelu(float value, float slope) {
#if defined(__CUDACC__)
  asm("{\n\t.reg .pred above;\n\tsetp.gt.f32 above, %0, 0f00000000;\n\t@!above mul.rn.f32 %0, %0, %1;\n\t}"
      : "+f"(value)
      : "f"(slope));  // two instructions; a conditional expression takes three
  return value;
#else
  return value > 0.0f ? value : slope * value;
#endif
}

// How activations are stored: float32, or bfloat16 if the arithmetic is bfloat16.
struct Bfloat16 {
  std::uint16_t bits;
};

METATASNET_DEVICE float to_float(float value) { return value; }
METATASNET_DEVICE float to_float(Bfloat16 value) { return as_float(static_cast<std::uint32_t>(value.bits) << 16); }

template <class Stored>
METATASNET_DEVICE Stored stored(float value);
template <>
METATASNET_DEVICE float stored<float>(float value) {
  return value;
}
template <>
METATASNET_DEVICE Bfloat16 stored<Bfloat16>(float value) {
  return {static_cast<std::uint16_t>(pack_bfloat16(value, 0.0f) & 0xffffu)};
}

// Two neighbouring values, the first at an even place.
METATASNET_DEVICE void store_pair(float* to, float first, float second) {
#if defined(__CUDACC__)
  *reinterpret_cast<float2*>(to) = make_float2(first, second);
#else
  to[0] = first;
  to[1] = second;
#endif
}
METATASNET_DEVICE void store_pair(Bfloat16* to, float first, float second) {
  const std::uint32_t packed = pack_bfloat16(first, second);
#if defined(__CUDACC__)
  *reinterpret_cast<std::uint32_t*>(to) = packed;
#else
  std::memcpy(to, &packed, sizeof packed);
#endif
}

// Neighbouring values, the first at a multiple of their number.
template <int count>
struct Vector {
  float v[count];
};
using Pair = Vector<2>;
using Eight = Vector<8>;

// Two values, rounded as storing rounds them.
template <class Stored>
METATASNET_DEVICE Pair as_stored(float first, float second);
template <>
METATASNET_DEVICE Pair as_stored<float>(float first, float second) {
  return {{first, second}};
}
template <>
METATASNET_DEVICE Pair as_stored<Bfloat16>(float first, float second) {
  const std::uint32_t packed = pack_bfloat16(first, second);
  return {{low_bfloat16(packed), high_bfloat16(packed)}};
}

METATASNET_DEVICE Pair load_pair(const float* from) {
#if defined(__CUDACC__)
  const float2 pair = *reinterpret_cast<const float2*>(from);
  return {{pair.x, pair.y}};
#else
  return {{from[0], from[1]}};
#endif
}
METATASNET_DEVICE Pair load_pair(const Bfloat16* from) {
  std::uint32_t packed;
#if defined(__CUDACC__)
  packed = *reinterpret_cast<const std::uint32_t*>(from);
#else
  std::memcpy(&packed, from, sizeof packed);
#endif
  return {{low_bfloat16(packed), high_bfloat16(packed)}};
}

METATASNET_DEVICE Words load_words(const void* from) {
#if defined(__CUDACC__)
  return *static_cast<const Words*>(from);
#else
  Words words;
  std::memcpy(&words, from, sizeof words);
  return words;
#endif
}

METATASNET_DEVICE void store_word(void* to, std::uint32_t word) {
#if defined(__CUDACC__)
  *static_cast<std::uint32_t*>(to) = word;
#else
  std::memcpy(to, &word, sizeof word);
#endif
}

METATASNET_DEVICE void store_words(void* to, const Words& words) {
#if defined(__CUDACC__)
  *static_cast<Words*>(to) = words;
#else
  std::memcpy(to, &words, sizeof words);
#endif
}

// Eight neighbouring values as they are stored.
template <class Stored>
struct Packed {
  Words words[sizeof(Stored) / 2];
};

template <class Stored>
METATASNET_DEVICE Packed<Stored> load_packed(const Stored* from) {
  Packed<Stored> packed;
  const char* const bytes = reinterpret_cast<const char*>(from);
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(Stored)) / 2; ++i) packed.words[i] = load_words(bytes + 16 * i);
  return packed;
}

METATASNET_DEVICE Eight unpacked(const Packed<float>& packed) {
  Eight e;
#pragma unroll
  for (int j = 0; j < 8; ++j) e.v[j] = as_float(packed.words[j / 4].word[j % 4]);
  return e;
}
METATASNET_DEVICE Eight unpacked(const Packed<Bfloat16>& packed) {
  Eight e;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    e.v[2 * j] = low_bfloat16(packed.words[0].word[j]);
    e.v[2 * j + 1] = high_bfloat16(packed.words[0].word[j]);
  }
  return e;
}

template <class Stored>
METATASNET_DEVICE Eight load_eight(const Stored* from) {
  return unpacked(load_packed(from));
}

METATASNET_DEVICE void store_eight(float* to, const Eight& e) {
  Words first, second;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    first.word[j] = as_bits(e.v[j]);
    second.word[j] = as_bits(e.v[4 + j]);
  }
  store_words(to, first);
  store_words(to + 4, second);
}

METATASNET_DEVICE void store_eight(Bfloat16* to, const Eight& e) {
  Words words;
#pragma unroll
  for (int j = 0; j < 4; ++j) words.word[j] = pack_bfloat16(e.v[2 * j], e.v[2 * j + 1]);
  store_words(to, words);
}

template <int count, class Stored>
METATASNET_DEVICE Vector<count> load_vector(const Stored* from) {
  static_assert(count == 2 || count == 8);
  if constexpr (count == 2) {
    return load_pair(from);
  } else {
    return load_eight(from);
  }
}
template <class Stored>
METATASNET_DEVICE void store_vector(Stored* to, const Pair& pair) {
  store_pair(to, pair.v[0], pair.v[1]);
}
template <class Stored>
METATASNET_DEVICE void store_vector(Stored* to, const Eight& eight) {
  store_eight(to, eight);
}

}  // namespace metatasnet::METATASNET_DEVICES
