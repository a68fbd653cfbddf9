// Exponential functions with the same bits on the CPU and on a GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/isa.h"

#if defined(__CUDACC__)
#define JOINTMAE_HOST_DEVICE __host__ __device__
#else
#define JOINTMAE_HOST_DEVICE
#endif

namespace jointmae {

// exp(x) for -87 <= x <= 87 to 2 units in the last place; Cephes' polynomial.
template <Isa isa>
JOINTMAE_HOST_DEVICE inline float exp_bounded(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer n, and leaves n in the low bits
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * (r * r) + r) + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

template <Isa isa>
inline double exp_bounded(double x) {
  return std::exp(x);
}

// exp(x) for x <= 0 (more counts as 0), 0 below e^-87.
template <Isa isa>
JOINTMAE_HOST_DEVICE inline float exp_negative(float x) {
  float clamped = x < 0.0f ? x : 0.0f;
  clamped = clamped > -87.0f ? clamped : -87.0f;
  return x < -87.0f ? 0.0f : exp_bounded<isa>(clamped);
}

template <Isa isa>
inline double exp_negative(double x) {
  return std::exp(x > 0.0 ? 0.0 : x);
}

}  // namespace jointmae
