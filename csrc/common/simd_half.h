// 16-bit floating-point numbers as vectors of float: widened exactly, narrowed to the nearest, ties to even.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/isa.h"
#include "common/simd.h"

namespace jointmae {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

#if defined(__GNUC__)
template <Isa isa>
struct HalfVectors {
  static constexpr int64_t kBytes = Simd<isa, float>::kBytes;
  typedef uint16_t Half __attribute__((vector_size(kBytes / 2)));
  typedef uint32_t Bits __attribute__((vector_size(kBytes)));
};
#endif

template <Isa isa>
inline float widen(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

template <Isa isa>
inline BFloat16 narrow_to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return {static_cast<uint16_t>(value != value ? bits >> 16 | 0x40 : rounded)};
}

template <Isa isa>
inline float widen(Float16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const uint32_t rest = static_cast<uint32_t>(value.bits & 0x7fff) << 13;
  float wide;
  std::memcpy(&wide, &rest, sizeof wide);
  wide *= 0x1p112f;  // the exponents' biases differ by 112; denormal numbers come out right too
  uint32_t bits;
  std::memcpy(&bits, &wide, sizeof bits);
  if (rest >= 0x0f800000) bits = rest | 0x7f800000;  // infinite or NaN
  bits |= sign;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

template <Isa isa>
inline Float16 narrow_to_float16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000;
  const float size = std::fabs(value);
  std::memcpy(&bits, &size, sizeof bits);
  if (size != size) {
    bits = 0x7e00;
  } else if (size >= 65520.0f) {
    bits = 0x7c00;
  } else if (size < 0x1p-14f) {  // a unit in the last place of 0.5 is that of denormal numbers: the sum rounds
    const float sum = size + 0.5f;
    std::memcpy(&bits, &sum, sizeof bits);
    bits -= 0x3f000000;
  } else {
    bits = (bits + 0xfff + (bits >> 13 & 1) - (112u << 23)) >> 13;
  }
  return {static_cast<uint16_t>(bits | sign)};
}

template <Isa isa>
inline typename Simd<isa, float>::Vector load_wide(const float* from) {
  return Simd<isa, float>::load(from);
}

template <Isa isa>
inline void store_narrow(float* to, typename Simd<isa, float>::Vector vector) {
  Simd<isa, float>::store(to, vector);
}

template <Isa isa>
inline typename Simd<isa, float>::Vector load_wide(const BFloat16* from) {
#if defined(__GNUC__)
  using Half = typename HalfVectors<isa>::Half;
  using Bits = typename HalfVectors<isa>::Bits;
  Half half;
  std::memcpy(&half, from, sizeof half);
  return reinterpret_cast<typename Simd<isa, float>::Vector>(__builtin_convertvector(half, Bits) << 16);
#else
  return widen<isa>(*from);
#endif
}

template <Isa isa>
inline void store_narrow(BFloat16* to, typename Simd<isa, float>::Vector vector) {
#if defined(__GNUC__)
  using Half = typename HalfVectors<isa>::Half;
  using Bits = typename HalfVectors<isa>::Bits;
  const Bits bits = reinterpret_cast<Bits>(vector);
  const Bits rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const Half half = __builtin_convertvector(vector != vector ? bits >> 16 | 0x40 : rounded, Half);
  std::memcpy(to, &half, sizeof half);
#else
  *to = narrow_to_bfloat16<isa>(vector);
#endif
}

template <Isa isa>
inline typename Simd<isa, float>::Vector load_wide(const Float16* from) {
#if defined(__AVX512F__)  // with a mask of all: GCC warns of what the plain ones leave undefined
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  float lanes[Simd<isa, float>::kLanes];
  for (int64_t lane = 0; lane < Simd<isa, float>::kLanes; ++lane) lanes[lane] = widen<isa>(from[lane]);
  return Simd<isa, float>::load(lanes);
#endif
}

template <Isa isa>
inline void store_narrow(Float16* to, typename Simd<isa, float>::Vector vector) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_maskz_cvtps_ph(0xffff, vector, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(vector, _MM_FROUND_TO_NEAREST_INT));
#else
  float lanes[Simd<isa, float>::kLanes];
  Simd<isa, float>::store(lanes, vector);
  for (int64_t lane = 0; lane < Simd<isa, float>::kLanes; ++lane) to[lane] = narrow_to_float16<isa>(lanes[lane]);
#endif
}

}  // namespace jointmae
