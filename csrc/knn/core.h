// A few boxes about a place, their points side by side in memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "common/boxes.h"
#include "common/isa.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "knn/scan.h"

namespace jointmae::knn {

template <Isa isa, typename T>
class Core {
  using S = Simd<isa, T>;
  using Index = typename S::Index;

 public:
  // Enough boxes to hold k points, where there are so many.
  Core(const Boxes<isa, T>& boxes, int64_t k)
      : boxes_(boxes),
        size_(std::min(boxes.num_boxes, std::max<int64_t>(4, 2 + k / kBoxSize))),
        num_groups_(std::min(boxes.num_groups, std::max<int64_t>(4, 2 + size_ / kBoxesInGroup))),
        coordinates_(3 * num_points()),
        index_(num_points()),
        members_(size_),
        groups_(num_groups_),
        group_distance_(boxes.num_groups + kBoxesInGroup),
        box_distance_(num_groups_ * kBoxesInGroup) {}

  int64_t num_points() const { return size_ * kBoxSize; }
  PointArrays<isa, T> points() const {
    const T* x = coordinates_.get();
    return {x, x + num_points(), x + 2 * num_points(), index_.get()};
  }
  bool contains(int64_t box) const {
    const int64_t *begin = members_.get(), *end = begin + size_;
    for (const int64_t* member = begin; member < end; ++member) {
      if (*member == box) return true;
    }
    return false;
  }

  // Takes the boxes nearest to `center` of those in the nearest groups: likely, not certainly, the nearest of all.
  void choose(const T (&center)[3]) {
    measure(boxes_.group_bounds, center, 0, boxes_.num_groups, group_distance_.get());
    for (int64_t i = 0; i < num_groups_; ++i) {
      const int64_t group = take_lowest(group_distance_.get(), boxes_.num_groups);
      const int64_t begin = group * kBoxesInGroup, end = std::min(begin + kBoxesInGroup, boxes_.num_boxes);
      measure(boxes_.bounds, center, begin, end, box_distance_.get() + i * kBoxesInGroup);
      groups_[i] = group;
    }
    for (int64_t i = 0; i < size_; ++i) {
      const int64_t place = take_lowest(box_distance_.get(), num_groups_ * kBoxesInGroup);
      copy(groups_[place / kBoxesInGroup] * kBoxesInGroup + place % kBoxesInGroup, i);
    }
  }

 private:
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();

  // Squared distances of the bounds begin..end-1, finite also where they overflow; then infinity, up to a whole group.
  void measure(const Bounds<isa, T>& bounds, const T (&center)[3], int64_t begin, int64_t end, T* distance) const {
    const auto x = S::broadcast(center[0]), y = S::broadcast(center[1]), z = S::broadcast(center[2]);
    const auto highest = S::broadcast(std::numeric_limits<T>::max());
    for (int64_t i = begin; i < end; i += S::kLanes) {
      const auto d = bounds.sq_distance_from(x, y, z, i);
      S::store(distance + (i - begin), d < highest ? d : highest);
    }
    for (int64_t i = end - begin; i % kBoxesInGroup != 0; ++i) distance[i] = kInfinity;
  }

  // The place of the lowest distance, which is taken out: infinity takes its place.
  static int64_t take_lowest(T* distance, int64_t count) {
    auto lowest = S::load(distance);
    auto where = S::ascending(), at = where;
    for (int64_t i = S::kLanes; i < count; i += S::kLanes) {
      at += S::broadcast_index(S::kLanes);
      const auto d = S::load(distance + i);
      where = d < lowest ? at : where;
      lowest = d < lowest ? d : lowest;
    }
    Index places[S::kLanes];
    S::store_index(places, where);
    const int64_t place = places[S::first_equal(lowest, S::broadcast(S::lowest(lowest)))];
    distance[place] = kInfinity;
    return place;
  }

  void copy(int64_t box, int64_t member) {
    const int64_t from = box * kBoxSize, to = member * kBoxSize;
    T* x = coordinates_.get() + to;
    const T* const axes[3] = {boxes_.x, boxes_.y, boxes_.z};
    for (int c = 0; c < 3; ++c) std::memcpy(x + c * num_points(), axes[c] + from, kBoxSize * sizeof(T));
    std::memcpy(index_.get() + to, boxes_.index + from, kBoxSize * sizeof(Index));
    members_[member] = box;
  }

  const Boxes<isa, T>& boxes_;
  const int64_t size_, num_groups_;
  Scratch<isa, T> coordinates_;    // [axis, point]
  Scratch<isa, Index> index_;      // of each point
  Scratch<isa, int64_t> members_;  // boxes
  Scratch<isa, int64_t> groups_;   // that the members are chosen from
  Scratch<isa, T> group_distance_, box_distance_;
};

}  // namespace jointmae::knn
