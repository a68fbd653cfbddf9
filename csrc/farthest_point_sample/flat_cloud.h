// Farthest point sampling of a small cloud: every step looks at every point.
#pragma once

#include <cstdint>
#include <limits>

#include "common/coordinates.h"
#include "common/isa.h"
#include "common/scratch.h"
#include "common/simd.h"

namespace jointmae {

// One cloud being sampled. Its arrays are groups of a few vectors, so that the search for the highest distance keeps a
// group's number and not a vector's.
template <Isa isa, typename T>
class FlatCloud {
  using S = Simd<isa, T>;
  using Vector = typename S::Vector;
  using Index = typename S::Index;

 public:
  explicit FlatCloud(int64_t max_points)
      : stride_(round_up(max_points) + S::kLanes),  // the arrays do not begin at the same place of a page
        memory_(4 * stride_),
        x_(memory_.get()),
        y_(x_ + stride_),
        z_(y_ + stride_),
        sq_dist_(z_ + stride_) {}

  // points [count, 3].
  void fill(const T* points, int64_t count, int /*num_threads*/) {
    num_groups_ = round_up(count) / kGroup;
    for (int64_t i = 0; i < count; ++i) {
      x_[i] = points[3 * i];
      y_[i] = points[3 * i + 1];
      z_[i] = points[3 * i + 2];
      sq_dist_[i] = std::numeric_limits<T>::infinity();
    }
    for (int64_t i = count; i < num_groups_ * kGroup; ++i) {
      x_[i] = y_[i] = z_[i] = 0;
      sq_dist_[i] = kPadding;
    }
  }

  // `sample` is one from now on.
  void add(int64_t sample) {
    const Vector x = S::broadcast(x_[sample]), y = S::broadcast(y_[sample]), z = S::broadcast(z_[sample]);
    highest_ = S::broadcast(kPadding);
    first_group_ = S::broadcast_index(0);
    for (int64_t group = 0; group < num_groups_; ++group) {
      const Vector highest = lower_group(group * kGroup, x, y, z);
      first_group_ = highest > highest_ ? S::broadcast_index(static_cast<Index>(group)) : first_group_;
      highest_ = S::larger(highest, highest_);
    }
  }

  // The lowest index of the points that are farthest from all samples: mostly one point, in one lane.
  int64_t farthest() const {
    const Vector highest = S::highest_everywhere(highest_);
    const T value = S::first(highest);
    if (value == 0) return 0;
    Index groups[S::kLanes];
    S::store_index(groups, first_group_);
    int64_t first = std::numeric_limits<int64_t>::max();
    for (unsigned lanes = S::at_most(highest, highest_); lanes != 0; lanes &= lanes - 1) {
      const int64_t lane = S::lowest_bit(lanes), i = first_of_group(groups[lane] * kGroup + lane, value);
      first = i < first ? i : first;
    }
    return first;
  }

 private:
  static constexpr int64_t kVectors = 4;  // of a group
  static constexpr int64_t kGroup = kVectors * S::kLanes;
  static constexpr T kPadding = -1;  // in place of a distance: never the highest

  static int64_t round_up(int64_t count) { return (count + kGroup - 1) / kGroup * kGroup; }

  // Lowers the distances of one group to those to (x, y, z); returns the highest of each lane.
  Vector lower_group(int64_t i, Vector x, Vector y, Vector z) {
    Vector highest = lower(i, x, y, z);
    for (int64_t v = 1; v < kVectors; ++v) highest = S::larger(highest, lower(i + v * S::kLanes, x, y, z));
    return highest;
  }
  Vector lower(int64_t i, Vector x, Vector y, Vector z) {
    const Vector d = sq_distance<isa>(S::load(x_ + i), S::load(y_ + i), S::load(z_ + i), x, y, z);
    const Vector nearest = S::smaller(d, S::load(sq_dist_ + i));
    S::store(sq_dist_ + i, nearest);
    return nearest;
  }

  // The first point with this distance in the lane of point i, which lies in a group's first vector. No branches: which
  // vector it is cannot be foreseen.
  int64_t first_of_group(int64_t i, T value) const {
    unsigned equal = 1u << (kVectors - 1);
    for (int64_t v = 0; v < kVectors - 1; ++v) equal |= unsigned{sq_dist_[i + v * S::kLanes] == value} << v;
    return i + S::lowest_bit(equal) * S::kLanes;
  }

  int64_t num_groups_ = 0;
  const int64_t stride_;
  Scratch<isa, T> memory_;
  T *const x_, *const y_, *const z_, *const sq_dist_;  // [stride_]
  Vector highest_ = {};                                // of each lane
  typename S::IndexVector first_group_ = {};           // of each lane, the first group that has it
};

}  // namespace jointmae
