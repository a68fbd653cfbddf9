// A cloud cut into boxes of points that lie close together, so that most of it can be left out of a search.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common/curve_order.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "common/simd.h"

namespace jointmae {

inline constexpr int64_t kBoxSize = 64;  // points
inline constexpr int64_t kBoxesInGroup = 16;

// The larger of two, for numbers and vectors; `b` where one is NaN.
template <Isa isa, typename V>
inline V larger(V a, V b) {
  return a > b ? a : b;
}

// The corners of many boxes, an array per axis. Where there is no box they lie at infinity.
template <Isa isa, typename T>
class Bounds {
  using S = Simd<isa, T>;
  using Vector = typename S::Vector;

 public:
  // Room for `max_count` boxes; whole vectors can be loaded from any multiple of kBoxesInGroup below it.
  explicit Bounds(int64_t max_count)
      : stride_((max_count + kBoxesInGroup - 1) / kBoxesInGroup * kBoxesInGroup), memory_(6 * stride_) {
    for (int c = 0; c < 3; ++c) low[c] = memory_.get() + c * stride_, high[c] = memory_.get() + (3 + c) * stride_;
  }

  // No vector contains a box from `count` on.
  void pad(int64_t count) {
    const int64_t end = (count + kBoxesInGroup - 1) / kBoxesInGroup * kBoxesInGroup;
    for (int c = 0; c < 3; ++c) {
      for (int64_t i = count; i < end; ++i) low[c][i] = high[c][i] = std::numeric_limits<T>::infinity();
    }
  }

  // For the boxes i..i+kLanes-1: at most the squared distance from (x, y, z) to any point in them, as sq_distance
  // rounds it, because rounding keeps the order of what is rounded.
  Vector sq_distance_from(Vector x, Vector y, Vector z, int64_t i) const {
    const Vector dx = gap(0, i, x, x), dy = gap(1, i, y, y), dz = gap(2, i, z, z);
    return (dx * dx + dy * dy) + dz * dz;
  }
  // The same from any point of another box to any point in them.
  Vector sq_distance_from(const T (&other_low)[3], const T (&other_high)[3], int64_t i) const {
    const Vector dx = gap(0, i, S::broadcast(other_low[0]), S::broadcast(other_high[0]));
    const Vector dy = gap(1, i, S::broadcast(other_low[1]), S::broadcast(other_high[1]));
    const Vector dz = gap(2, i, S::broadcast(other_low[2]), S::broadcast(other_high[2]));
    return (dx * dx + dy * dy) + dz * dz;
  }

  T *low[3], *high[3];

 private:
  Vector gap(int axis, int64_t i, Vector other_low, Vector other_high) const {
    const Vector below = S::load(low[axis] + i) - other_high, above = other_low - S::load(high[axis] + i);
    return larger<isa>(larger<isa>(below, above), Vector{});
  }

  int64_t stride_;
  Scratch<isa, T> memory_;
};

// Boxes of kBoxSize points, and groups of kBoxesInGroup boxes that follow each other along the curve. Memory is taken
// once; `build` may be called for one cloud after another.
template <Isa isa, typename T>
class Boxes {
 public:
  using Index = typename Simd<isa, T>::Index;
  static constexpr Index kNoPoint = std::numeric_limits<Index>::max();

  static int64_t boxes_for(int64_t count) { return (count + kBoxSize - 1) / kBoxSize; }
  static int64_t groups_for(int64_t count) { return (boxes_for(count) + kBoxesInGroup - 1) / kBoxesInGroup; }

  explicit Boxes(int64_t max_points)
      : bounds(boxes_for(max_points)),
        group_bounds(groups_for(max_points)),
        stride_(boxes_for(max_points) * kBoxSize),
        order_(max_points),
        coordinates_(3 * stride_),
        indices_(stride_) {
    x = coordinates_.get(), y = x + stride_, z = y + stride_;
    index = indices_.get();
  }

  // points [count, 3], finite, 1 <= count <= max_points. The result does not depend on the number of threads.
  void build(const T* points, int64_t count, int num_threads) {
    num_points = count, num_boxes = boxes_for(count), num_groups = groups_for(count);
    order_.sort(points, count, num_threads);
    const int64_t grain = std::max<int64_t>(1, num_groups / (4 * num_threads));
    parallel_for(num_groups, grain, num_threads, [=](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) fill_group(points, group);
    });
    bounds.pad(num_boxes);
    group_bounds.pad(num_groups);
  }

  int64_t num_points = 0, num_boxes = 0, num_groups = 0;
  T *x, *y, *z;           // [num_boxes * kBoxSize], NaN after the last point
  Index* index;           // [same], which point of the cloud; kNoPoint after the last one
  Bounds<isa, T> bounds;  // of each box
  Bounds<isa, T> group_bounds;

 private:
  void fill_group(const T* points, int64_t group) {
    const int64_t first = group * kBoxesInGroup, last = std::min(first + kBoxesInGroup, num_boxes);
    T low[3], high[3];
    for (int c = 0; c < 3; ++c) {
      low[c] = std::numeric_limits<T>::infinity();
      high[c] = -low[c];
    }
    for (int64_t box = first; box < last; ++box) {
      fill_box(points, box);
      for (int c = 0; c < 3; ++c) {
        low[c] = bounds.low[c][box] < low[c] ? bounds.low[c][box] : low[c];
        high[c] = larger<isa>(bounds.high[c][box], high[c]);
      }
    }
    for (int c = 0; c < 3; ++c) group_bounds.low[c][group] = low[c], group_bounds.high[c][group] = high[c];
  }

  void fill_box(const T* points, int64_t box) {
    const int64_t begin = box * kBoxSize, end = std::min(begin + kBoxSize, num_points);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t p = order_.at(i);
      index[i] = static_cast<Index>(p);
      x[i] = points[3 * p];
      y[i] = points[3 * p + 1];
      z[i] = points[3 * p + 2];
    }
    const T* axes[3] = {x, y, z};
    for (int c = 0; c < 3; ++c) {
      const T* __restrict__ values = axes[c];
      T low = values[begin], high = values[begin];
#pragma omp simd reduction(min : low) reduction(max : high)
      for (int64_t i = begin; i < end; ++i) {
        low = values[i] < low ? values[i] : low;
        high = values[i] > high ? values[i] : high;
      }
      bounds.low[c][box] = low, bounds.high[c][box] = high;
    }
    for (int64_t i = end; i < begin + kBoxSize; ++i) {
      index[i] = kNoPoint;
      x[i] = y[i] = z[i] = std::numeric_limits<T>::quiet_NaN();
    }
  }

  int64_t stride_;
  CurveOrder<isa, T> order_;
  Scratch<isa, T> coordinates_;
  Scratch<isa, Index> indices_;
};

}  // namespace jointmae
