// Powers of 2 and their logarithm, for a vector of scores.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/simd.h"

namespace jointmae {

// 2^x for x <= 0, or little more, to about 1 unit in the last place; 0 below -126.5; NaN stays NaN.
template <Isa isa>
inline typename Simd<isa, float>::Vector exp2_negative(typename Simd<isa, float>::Vector x) {
  using V = Simd<isa, float>;
  const auto clamped = V::larger(V::broadcast(-127.0f), x);
  // 1.5 * 2^23 rounds to an integer n and leaves it in the low bits; with 127 more they are the exponent's of 2^n, and
  // those of 0 for n = -127.
  const auto round = V::broadcast(12582912.0f + 127.0f);
  const auto shifted = clamped + round;
  const auto rest = clamped - (shifted - round);  // in -1/2..1/2
  auto p = V::fma(V::broadcast(1.32647270e-3f), rest, V::broadcast(9.67151265e-3f));
  p = V::fma(p, rest, V::broadcast(5.55073374e-2f));
  p = V::fma(p, rest, V::broadcast(2.40222421e-1f));
  p = V::fma(p, rest, V::broadcast(6.93146978e-1f));
  p = V::fma(p, rest, V::broadcast(1.0f));
  return p * V::of_bits(V::bits_of(shifted) << 23);
}

// log2(x) for x from 1 on; NaN stays NaN.
template <Isa isa>
inline typename Simd<isa, float>::Vector log2_positive(typename Simd<isa, float>::Vector x) {
  using V = Simd<isa, float>;
  constexpr int32_t kSqrtHalf = 0x3f3504f3;  // its bits
  const auto exponent = (V::bits_of(x) - kSqrtHalf) >> 23;
  const auto m = V::of_bits(V::bits_of(x) - (exponent << 23));  // in sqrt(1/2)..sqrt(2)
  const auto one = V::broadcast(1.0f);
  const auto s = (m - one) / (m + one), square = s * s;  // log(m) = 2 artanh(s)
  auto p = V::fma(V::broadcast(2.0f / 9), square, V::broadcast(2.0f / 7));
  p = V::fma(p, square, V::broadcast(2.0f / 5));
  p = V::fma(p, square, V::broadcast(2.0f / 3));
  p = V::fma(p, square, V::broadcast(2.0f));
  return V::fma(p * s, V::broadcast(1.44269504f), V::of_index(exponent)) + (x - x);
}

}  // namespace jointmae
