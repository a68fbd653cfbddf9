// Points as three arrays, so that the compiler's vectors run along the points.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace jointmae {

// points [N, 3] -> coordinates [3, N].
template <Isa isa, typename T>
void split_coordinates(const T* __restrict__ points, T* __restrict__ coordinates, int64_t N) {
  T *x = coordinates, *y = x + N, *z = y + N;
  for (int64_t i = 0; i < N; ++i) {
    x[i] = points[3 * i];
    y[i] = points[3 * i + 1];
    z[i] = points[3 * i + 2];
  }
}

// The squared distance as the contract rounds it; the sign of the differences does not matter.
template <Isa isa, typename T>
inline T sq_distance(T ax, T ay, T az, T bx, T by, T bz) {
  const T dx = ax - bx, dy = ay - by, dz = az - bz;
  return (dx * dx + dy * dy) + dz * dz;
}

}  // namespace jointmae
