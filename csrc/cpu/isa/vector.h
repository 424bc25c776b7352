// Vectors of the instruction set that this object is compiled for: a thin layer over the compilers' vector extension.
//
// Everything is in the namespace METATASNET_ISA and uses no std:: templates. Otherwise two objects could share a
// function, and the linker might keep the copy that this machine cannot run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define METATASNET_INLINE inline __attribute__((always_inline))
#define METATASNET_INLINE_LAMBDA __attribute__((always_inline))

namespace metatasnet::METATASNET_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kRows = 12;  // 12 x 2 accumulators, two weights and a broadcast of 32 registers
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kRows = 6;  // 6 x 2 accumulators of 16 registers
#else
constexpr int kLanes = 4;
constexpr int kRows = 6;
#endif
constexpr int kVectors = 2;
constexpr int kPanel = kVectors * kLanes;  // columns of a register tile

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef std::int32_t IVec __attribute__((vector_size(kLanes * 4)));
typedef std::uint32_t UVec __attribute__((vector_size(kLanes * 4)));
typedef std::uint16_t HVec __attribute__((vector_size(kLanes * 2)));

// Storage of bfloat16: the upper half of a float.
struct bfloat16 {
  std::uint16_t bits;
};

// All lanes x. Built as integers: 0 + x in floating point is an addition that no compiler may remove, and costs a
// broadcast between registers, which on Intel's processors occupies the port of one of the two multiply-add units.
METATASNET_INLINE Vec splat(float x) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return (Vec)(UVec{} + bits);
}

METATASNET_INLINE Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

METATASNET_INLINE void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }

// bfloat16 as float, by the dedicated instruction: GCC makes five instructions of the general conversion.
METATASNET_INLINE Vec widen(HVec h) {
#if defined(__AVX512F__)
  return (Vec)((UVec)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)h) << 16);
#elif defined(__AVX2__)
  return (Vec)((UVec)_mm256_cvtepu16_epi32((__m128i)h) << 16);
#else
  return (Vec)(__builtin_convertvector(h, UVec) << 16);
#endif
}

METATASNET_INLINE Vec load(const bfloat16* p) {
  HVec h;
  __builtin_memcpy(&h, p, sizeof h);
  return widen(h);
}

// The first `n` lanes (at most kLanes) from memory, zero in the others.
template <class T>
METATASNET_INLINE Vec load_first(const T* p, int n) {
  if (n >= kLanes) return load(p);
  T lanes[kLanes] = {};
  __builtin_memcpy(lanes, p, sizeof(T) * static_cast<std::size_t>(n > 0 ? n : 0));
  return load(lanes);
}

METATASNET_INLINE Vec select(IVec condition, Vec yes, Vec no) { return condition ? yes : no; }
METATASNET_INLINE Vec maximum(Vec a, Vec b) { return select(a > b, a, b); }
METATASNET_INLINE Vec minimum(Vec a, Vec b) { return select(a < b, a, b); }
METATASNET_INLINE Vec prelu(Vec x, Vec slope) { return select(x > Vec{}, x, x * slope); }
METATASNET_INLINE Vec relu(Vec x) { return select(x < Vec{}, Vec{}, x); }  // a NaN stays one

// Round to nearest even, as float bits with a zero lower half.
METATASNET_INLINE UVec rounded_bits(Vec v) {
  const UVec bits = (UVec)v;
  const UVec up = bits + 0x7fff + ((bits >> 16) & 1);
  const UVec quiet = UVec{} + 0x7fc00000u;
  return (UVec)select(v == v, (Vec)up, (Vec)quiet) & 0xffff0000u;
}

#if defined(__AVX512BF16__)
METATASNET_INLINE void store(bfloat16* p, Vec v) {
  const __m256bh h = _mm512_cvtneps_pbh((__m512)v);
  __builtin_memcpy(p, &h, sizeof h);
}
#else
METATASNET_INLINE void store(bfloat16* p, Vec v) {
  const HVec h = __builtin_convertvector(rounded_bits(v) >> 16, HVec);
  __builtin_memcpy(p, &h, sizeof h);
}
#endif

// Rounded to bfloat16, in the upper half.
METATASNET_INLINE UVec rounded(Vec v) {
#if defined(__AVX512BF16__)
  return (UVec)widen((HVec)_mm512_cvtneps_pbh((__m512)v));
#else
  return rounded_bits(v);
#endif
}

// Store, and return the value that a load would give.
METATASNET_INLINE Vec store_rounded(float* p, Vec v) {
  store(p, v);
  return v;
}

METATASNET_INLINE Vec store_rounded(bfloat16* p, Vec v) {
#if defined(__AVX512BF16__)
  const __m256bh h = _mm512_cvtneps_pbh((__m512)v);
  __builtin_memcpy(p, &h, sizeof h);
  return widen((HVec)h);
#else
  const UVec bits = rounded_bits(v);
  const HVec h = __builtin_convertvector(bits >> 16, HVec);
  __builtin_memcpy(p, &h, sizeof h);
  return (Vec)bits;
#endif
}

// Return `v` rounded as if it was stored as T and loaded again.
template <class T>
METATASNET_INLINE Vec as_stored(Vec v) {
  if constexpr (sizeof(T) == sizeof(float)) return v;
  return (Vec)rounded(v);
}

// The PReLU of a value stored as T, rounded to T.
template <class T>
METATASNET_INLINE Vec activated(Vec x, Vec slope) {
  return as_stored<T>(prelu(x, slope));
}

// Store one frame of a panel without placing it in the caches: only the backward pass reads it, and the cache is needed
// for values that are read sooner. `p` is aligned to a cache line. Call stream_end() before another thread reads it.
METATASNET_INLINE void stream(float* p, const Vec* v) {
#if defined(__AVX512F__)
  for (int i = 0; i < kVectors; ++i) _mm512_stream_ps(p + i * kLanes, (__m512)v[i]);
#elif defined(__AVX2__)
  for (int i = 0; i < kVectors; ++i) _mm256_stream_ps(p + i * kLanes, (__m256)v[i]);
#else
  for (int i = 0; i < kVectors; ++i) store(p + i * kLanes, v[i]);
#endif
}

METATASNET_INLINE void stream(bfloat16* p, const Vec* v) {
#if defined(__AVX2__)
  alignas(64) bfloat16 line[kPanel];
  for (int i = 0; i < kVectors; ++i) store(line + i * kLanes, v[i]);
  for (int i = 0; i < kPanel; i += 16)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p + i), *reinterpret_cast<const __m256i*>(line + i));
#else
  for (int i = 0; i < kVectors; ++i) store(p + i * kLanes, v[i]);
#endif
}

METATASNET_INLINE void stream_end() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// exp(x) for x <= 0 to 2 units in the last place: 2^k times the Taylor polynomial of the remainder (|r| <= ln2 / 2).
METATASNET_INLINE Vec exp_nonpositive(Vec x) {
  x = select(x < -87.0f, splat(-87.0f), x);
  const Vec shifted = x * 1.44269504088896f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer in the low bits
  const Vec k = shifted - 12582912.0f;
  const Vec r = (x - k * 0.693359375f) - k * -2.12194440e-4f;
  Vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const IVec exponent = ((IVec)shifted << 23) + (127 << 23);
  return p * (Vec)exponent;
}

}  // namespace metatasnet::METATASNET_ISA
