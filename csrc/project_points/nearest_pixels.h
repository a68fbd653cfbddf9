// The z-buffer: the nearest point of each pixel, ties to the lowest index. N points, W x H pixels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "common/isa.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "project_points/seen.h"

namespace jointmae {

template <Isa isa, typename T>
void fill(T* __restrict__ values, T value, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) values[i] = value;
}

// A depth as an integer that compares like it, but for 0, which is empty and the farthest of all.
template <Isa isa, typename T>
auto depth_order(T depth) {
  std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t> bits;
  std::memcpy(&bits, &depth, sizeof bits);
  return bits - 1;
}

// Draws points of one pixel, the first of which is point `first` of its cloud, into an image that is empty (depth 0,
// index -1) or has points before it. Both are written whether the point is nearer or not: what is nearer can hardly be
// predicted, and the lines are written anyway.
template <Isa isa, typename T>
void draw_single_pixels(const Seen<isa, T>& seen, const int32_t* __restrict__ list, int64_t count, int64_t first,
                        int64_t W, T* __restrict__ depth, int32_t* __restrict__ index) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = list[i], p = seen.y[n] * W + seen.x[n];
    const T z = seen.z[n], before = depth[p];
    const bool nearer = depth_order<isa>(z) < depth_order<isa>(before);
    const int32_t winner = nearer ? static_cast<int32_t>(first + n) : index[p];
    depth[p] = nearer ? z : before;
    index[p] = winner;
  }
}

// Draws an image of later points over an earlier one.
template <Isa isa, typename T>
void merge_images(const T* __restrict__ later_depth, const int32_t* __restrict__ later_index, int64_t count,
                  T* __restrict__ depth, int32_t* __restrict__ index) {
#pragma omp simd
  for (int64_t p = 0; p < count; ++p) {
    const T z = later_depth[p], before = depth[p];
    const bool nearer = depth_order<isa>(z) < depth_order<isa>(before);
    depth[p] = nearer ? z : before;
    index[p] = nearer ? later_index[p] : index[p];
  }
}

}  // namespace jointmae
