// How the depth of a point counts in the mode soft: exp(-(z - z_min) / temperature) is a quotient of two numbers, one
// of the point and one of the nearest point of the pixel, so that drawing takes no exponential function per pixel of a
// footprint. Each is a mantissa times a power of two, which cannot overflow whatever z is (below 1e28, weight times z
// cannot either), and powers of two multiply exactly.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/exponential.h"
#include "common/isa.h"

namespace jointmae {

// -log2(e) / temperature, the exponent of two for a depth of 1; temperatures below 1.4e-24 count as that.
template <Isa isa>
double exponent_per_depth(double temperature) {
  constexpr double kLowest = -1e24;
  const double exponent = -1.4426950408889634 / temperature;
  return exponent > kLowest ? exponent : kLowest;
}

// exp(-z / temperature) = mantissa * 2^exponent. The exponent is a whole number, and the mantissa within sqrt(2)^+-1,
// but for exponents beyond 2^24 in float: there floats are farther apart than whole numbers, and it takes what is left,
// 2^+-32 up to exponents of 2^30. Beyond those two depths that are not the same are 64 powers of two apart, 32 of which
// remain.
template <typename T>
struct DepthWeight {
  T mantissa, exponent;
};

template <Isa isa, typename T>
JOINTMAE_HOST_DEVICE inline DepthWeight<T> depth_weight(T z, double exponent_per_depth) {
  constexpr double kRound = -4503599627370496.0;  // -2^52: adding it to what is below 0 rounds to an integer
  constexpr double kLowest = -1e37, kMost = 32.0, kLog2 = 0.6931471805599453;
  const double product = static_cast<double>(z) * exponent_per_depth;
  const double bounded = product > kLowest ? product : kLowest, x = bounded < 0.0 ? bounded : 0.0;
  const T exponent = static_cast<T>((x + kRound) - kRound);
  double rest = x - static_cast<double>(exponent);
  if constexpr (sizeof(T) == 8) rest = std::fma(bounded < 0.0 ? z : T(0), exponent_per_depth, -exponent);
  rest = rest > -kMost ? rest : -kMost;
  rest = rest < kMost ? rest : kMost;
  return {exp_bounded<isa>(static_cast<T>(rest * kLog2)), exponent};
}

// 2^exponent for a whole number up to 0; 0 where that is no normal number.
template <Isa isa>
JOINTMAE_HOST_DEVICE inline float power_of_two(float exponent) {
  const float bounded = exponent > -127.0f ? exponent : -127.0f;
  const float shifted = bounded + (12582912.0f + 127.0f);  // the biased exponent is in the low bits
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits <<= 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return power;
}

}  // namespace jointmae
