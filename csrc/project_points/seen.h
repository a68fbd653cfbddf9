// Where cameras see the points of a cloud. N points.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "common/isa.h"
#include "common/scratch.h"
#include "project_points/depth_weight.h"
#include "project_points/project_points.h"

namespace jointmae {

// first..last - 1.
struct Range {
  int64_t first, last;
};

// Points of one view.
template <Isa isa, typename T>
struct Seen {
  T *u, *v, *z;                           // [N] position in pixels, camera z
  int32_t *x, *y;                         // [N] the pixel, -1 where dropped
  T *mantissa, *per_mantissa, *exponent;  // [N] of the depth's weight and 1 by it, in the mode soft, else null
  Seen from(int64_t n) const {
    if (!exponent) return {u + n, v + n, z + n, x + n, y + n, nullptr, nullptr, nullptr};
    return {u + n, v + n, z + n, x + n, y + n, mantissa + n, per_mantissa + n, exponent + n};
  }
};

template <Isa isa, typename T>
struct SeenMemory {
  explicit SeenMemory(int64_t count, bool soft = false)
      : numbers((soft ? 6 : 3) * count),
        places(2 * count),
        seen{part(0, count),
             part(1, count),
             part(2, count),
             places.get(),
             places.get() + count,
             soft ? part(3, count) : nullptr,
             soft ? part(4, count) : nullptr,
             soft ? part(5, count) : nullptr} {}
  T* part(int64_t i, int64_t count) { return numbers.get() + i * count; }
  Scratch<isa, T> numbers;
  Scratch<isa, int32_t> places;
  Seen<isa, T> seen;
};

// Projects points [count, 3] through the camera m [3, 4], k [3, 3]; returns false if a point is not finite to the
// camera.
template <Isa isa, typename T>
bool project(const T* __restrict__ points, const T* __restrict__ m, const T* __restrict__ k, const ProjectSpec& spec,
             int64_t count, const Seen<isa, T>& out) {
  const T fx = k[0], cx = k[2], fy = k[4], cy = k[5];
  const T W = static_cast<T>(spec.W), H = static_cast<T>(spec.H);
  constexpr T kNear = static_cast<T>(kNearestDepth), kFar = std::numeric_limits<T>::max();
  T* __restrict__ u = out.u, * __restrict__ v = out.v, * __restrict__ z = out.z;
  int32_t* __restrict__ x = out.x, * __restrict__ y = out.y;
  int far_out = 0;
#pragma omp simd reduction(| : far_out)
  for (int64_t n = 0; n < count; ++n) {
    const T x0 = points[3 * n], y0 = points[3 * n + 1], z0 = points[3 * n + 2];
    const T xc = ((m[0] * x0 + m[1] * y0) + m[2] * z0) + m[3];
    const T yc = ((m[4] * x0 + m[5] * y0) + m[6] * z0) + m[7];
    const T zc = ((m[8] * x0 + m[9] * y0) + m[10] * z0) + m[11];
    const T uc = (fx * xc) / zc + cx, vc = (fy * yc) / zc + cy;
    const T column = std::floor(uc), row = std::floor(vc);
    const bool kept =  // compared as floats: a far-out pixel does not fit into an integer
        (zc > kNear) & (zc <= kFar) & (column >= 0) & (column < W) & (row >= 0) & (row < H);
    u[n] = uc;
    v[n] = vc;
    z[n] = zc;
    x[n] = static_cast<int32_t>(kept ? column : T(-1));
    y[n] = static_cast<int32_t>(kept ? row : T(-1));
    far_out |= (std::fabs(xc) + std::fabs(yc)) + std::fabs(zc) <= kFar ? 0 : 1;
  }
  return far_out == 0;
}

// What the depths weigh.
template <Isa isa, typename T>
void weigh_depths(const Seen<isa, T>& seen, int64_t count, double temperature) {
  const double scale = exponent_per_depth<isa>(temperature);
  const T* __restrict__ z = seen.z;
  T* __restrict__ mantissa = seen.mantissa, * __restrict__ per_mantissa = seen.per_mantissa;
  T* __restrict__ exponent = seen.exponent;
#pragma omp simd
  for (int64_t n = 0; n < count; ++n) {
    const DepthWeight<T> weight = depth_weight<isa>(z[n], scale);
    mantissa[n] = weight.mantissa;
    per_mantissa[n] = T(1) / weight.mantissa;
    exponent[n] = weight.exponent;
  }
}

// pixels [count, 2]
template <Isa isa, typename T>
void write_pixels(const Seen<isa, T>& seen, int64_t count, int32_t* __restrict__ pixels) {
  const int32_t* __restrict__ x = seen.x, * __restrict__ y = seen.y;
#pragma omp simd
  for (int64_t n = 0; n < count; ++n) {
    pixels[2 * n] = x[n];
    pixels[2 * n + 1] = y[n];
  }
}

// Lists the points that were not dropped, in their order; returns how many. Without branches, which nothing could
// predict.
template <Isa isa, typename T>
int64_t list_kept(const Seen<isa, T>& seen, int64_t count, int32_t* __restrict__ list) {
  const int32_t* __restrict__ x = seen.x;
  int64_t kept = 0;
  for (int64_t n = 0; n < count; ++n) {
    list[kept] = static_cast<int32_t>(n);
    kept += x[n] >= 0;
  }
  return kept;
}

}  // namespace jointmae
