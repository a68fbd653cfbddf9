// A cloud as three arrays, so that vectors run along the points.
#pragma once

#include <cstdint>
#include <limits>

#include "common/isa.h"
#include "common/simd.h"

namespace jointmae {

// The squared distance as the contract rounds it, for numbers and for vectors; the sign of the differences does not
// matter.
template <Isa isa, typename V>
inline V sq_distance(V ax, V ay, V az, V bx, V by, V bz) {
  const V dx = ax - bx, dy = ay - by, dz = az - bz;
  return (dx * dx + dy * dy) + dz * dz;
}

// The view of one cloud; its memory, `size_for(count)` numbers, belongs to somebody else.
template <Isa isa, typename T>
class Coordinates {
  using S = Simd<isa, T>;

 public:
  static int64_t size_for(int64_t max_count) { return 3 * (S::round_up(max_count) + S::kLanes); }

  Coordinates(T* memory, int64_t max_count)
      : x(memory), y(memory + size_for(max_count) / 3), z(memory + size_for(max_count) / 3 * 2) {}

  // points [count, 3]. NaN follows, so that any vector that begins at a point can be loaded: comparisons with a
  // distance to NaN are false, so that it is neither the smallest nor within any limit.
  void fill(const T* points, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      x[i] = points[3 * i];
      y[i] = points[3 * i + 1];
      z[i] = points[3 * i + 2];
    }
    for (int64_t i = count; i < S::round_up(count) + S::kLanes; ++i) {
      x[i] = y[i] = z[i] = std::numeric_limits<T>::quiet_NaN();
    }
  }

  T *const x, *const y, *const z;
};

}  // namespace jointmae
