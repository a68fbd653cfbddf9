// The gradient of the squared distances. A point of x gets that of its own distance first, then those of the points of
// y that have it as their nearest, in their order; a point of y its own last. Every way of cutting the work keeps that.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/isa.h"
#include "common/parallel.h"

namespace jointmae {

// One side of a pair of clouds.
template <Isa isa, typename T>
struct GradientSide {
  const T* grad_d;       // [count], `step` numbers apart: 0 where one holds for all
  const T* points;       // [count, 3]
  const int64_t* index;  // [count], into the other side
  T* grad;               // [size, 3]
  int64_t count, size, step;

  // Of the distance of point i, with respect to that point; with respect to its nearest one it is the opposite.
  T gradient(const T* others, int64_t i, int axis) const {
    return 2 * grad_d[i * step] * (points[3 * i + axis] - others[3 * index[i] + axis]);
  }
};

// Both sides at once.
template <Isa isa, typename T>
void gradient_of_pair(const GradientSide<isa, T>& x, const GradientSide<isa, T>& y) {
  std::fill(x.grad + 3 * x.count, x.grad + 3 * x.size, T(0));
  std::fill(y.grad, y.grad + 3 * y.size, T(0));
  for (int64_t i = 0; i < x.count; ++i) {
    for (int axis = 0; axis < 3; ++axis) {
      const T grad = x.gradient(y.points, i, axis);
      x.grad[3 * i + axis] = T(0) + grad;  // as where it is added to what was cleared: not -0
      y.grad[3 * x.index[i] + axis] -= grad;
    }
  }
  for (int64_t j = 0; j < y.count; ++j) {
    for (int axis = 0; axis < 3; ++axis) {
      const T grad = y.gradient(x.points, j, axis);
      y.grad[3 * j + axis] += grad;
      x.grad[3 * y.index[j] + axis] -= grad;
    }
  }
}

// Only points begin..end-1 of `side`: its own distances before or after those of the other one.
template <Isa isa, typename T>
void gradient_of_range(const GradientSide<isa, T>& side, const GradientSide<isa, T>& other, bool own_first,
                       int64_t begin, int64_t end) {
  const auto add_own = [&] {
    for (int64_t i = begin; i < std::min(end, side.count); ++i) {
      for (int axis = 0; axis < 3; ++axis) side.grad[3 * i + axis] += side.gradient(other.points, i, axis);
    }
  };
  std::fill(side.grad + 3 * begin, side.grad + 3 * end, T(0));
  if (own_first) add_own();
  for (int64_t j = 0; j < other.count; ++j) {
    const int64_t i = other.index[j];
    if (i < begin || i >= end) continue;
    for (int axis = 0; axis < 3; ++axis) side.grad[3 * i + axis] -= other.gradient(side.points, j, axis);
  }
  if (!own_first) add_own();
}

// One pair, over threads: each has a range of the points of one side.
template <Isa isa, typename T>
void gradient_of_large_pair(const GradientSide<isa, T>& x, const GradientSide<isa, T>& y, int num_threads) {
  const int64_t ranges = (num_threads + 1) / 2;  // of each side
  parallel_for(2 * ranges, 1, num_threads, [=](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const bool of_x = task < ranges;
      const GradientSide<isa, T>&side = of_x ? x : y, &other = of_x ? y : x;
      const int64_t range = of_x ? task : task - ranges;
      gradient_of_range(side, other, of_x, side.size * range / ranges, side.size * (range + 1) / ranges);
    }
  });
}

}  // namespace jointmae
