// Farthest point sampling of a large cloud: a step looks only at the boxes whose distances the new sample can lower.
#pragma once

#include <cstdint>
#include <limits>

#include "common/boxes.h"
#include "common/coordinates.h"
#include "common/isa.h"
#include "common/scratch.h"
#include "common/simd.h"

namespace jointmae {

// Numbers of boxes or groups, in a list with room for a vector more than there can be.
template <Isa isa, typename T>
class NumberList {
  using S = Simd<isa, T>;
  using Index = typename S::Index;

 public:
  explicit NumberList(int64_t max_count) : numbers_(max_count + S::kLanes) {}

  void clear() { count_ = 0; }
  // Those of i..i+kLanes-1 whose bit is set.
  void append(unsigned bits, int64_t i) {
    const auto numbers = S::ascending() + S::broadcast_index(static_cast<Index>(i));
    count_ += S::compress_index(bits, numbers, numbers_.get() + count_);
  }
  int64_t count() const { return count_; }
  const Index* begin() const { return numbers_.get(); }
  const Index* end() const { return numbers_.get() + count_; }

 private:
  Scratch<isa, Index> numbers_;
  int64_t count_ = 0;
};

// One cloud being sampled. Of each box, and where there are many also of each group of boxes, the highest distance is
// known: a sample that is at least so far from a box changes nothing in it.
template <Isa isa, typename T>
class BoxedCloud {
  using S = Simd<isa, T>;
  using Vector = typename S::Vector;
  using Index = typename S::Index;

 public:
  explicit BoxedCloud(int64_t max_points)
      : boxes_(max_points),
        sq_dist_(boxes_.boxes_for(max_points) * kBoxSize),
        box_highest_(boxes_.groups_for(max_points) * kBoxesInGroup),
        group_highest_(S::round_up(boxes_.groups_for(max_points))),
        listed_boxes_(boxes_.groups_for(max_points) * kBoxesInGroup),
        listed_groups_(S::round_up(boxes_.groups_for(max_points))) {}

  // points [count, 3], which must stay.
  void fill(const T* points, int64_t count, int num_threads) {
    points_ = points;
    boxes_.build(points, count, num_threads);
    by_group_ = boxes_.num_groups > kFewGroups;
    reset(sq_dist_.get(), count, boxes_.num_boxes * kBoxSize);
    reset(box_highest_.get(), boxes_.num_boxes, boxes_.num_groups * kBoxesInGroup);
    reset(group_highest_.get(), boxes_.num_groups, S::round_up(boxes_.num_groups));
  }

  // `sample` is one from now on.
  void add(int64_t sample) {
    const T* p = points_ + 3 * sample;
    const Vector x = S::broadcast(p[0]), y = S::broadcast(p[1]), z = S::broadcast(p[2]);
    list_near(x, y, z);
    lower_boxes(x, y, z);
    if (by_group_) update_groups();
  }

  // The lowest index of the points that are farthest from all samples.
  int64_t farthest() {
    const Vector value = S::highest_everywhere(by_group_ ? highest(group_highest_.get(), boxes_.num_groups)
                                                         : highest(box_highest_.get(), boxes_.num_boxes));
    if (S::first(value) == 0) return 0;
    list_highest(value);
    if (listed_boxes_.count() == 1) {
      const int64_t begin = *listed_boxes_.begin() * kBoxSize;
      const uint64_t equal = equal_in_box(begin, value);
      if ((equal & (equal - 1)) == 0) return boxes_.index[begin + S::lowest_bit(equal)];
    }
    return first_of_many(value);
  }

 private:
  static constexpr int64_t kFewGroups = 16;  // so few are not worth a look at all: their boxes are looked at at once
  static constexpr T kPadding = -1;          // in place of a distance: never the highest

  static void reset(T* sq_dist, int64_t count, int64_t padded_count) {
    for (int64_t i = 0; i < count; ++i) sq_dist[i] = std::numeric_limits<T>::infinity();
    for (int64_t i = count; i < padded_count; ++i) sq_dist[i] = kPadding;
  }

  // ---- what a sample changes

  // Lists the boxes, and the groups, in which a distance to (x, y, z) may be lower than before.
  void list_near(Vector x, Vector y, Vector z) {
    listed_boxes_.clear();
    listed_groups_.clear();
    if (!by_group_) return list_near_boxes(0, boxes_.num_boxes, x, y, z);
    for (int64_t i = 0; i < boxes_.num_groups; i += S::kLanes) {
      const Vector bound = boxes_.group_bounds.sq_distance_from(x, y, z, i);
      listed_groups_.append(S::less(bound, S::load(group_highest_.get() + i)), i);
    }
    for (const Index group : listed_groups_) {
      list_near_boxes(group * kBoxesInGroup, (group + 1) * kBoxesInGroup, x, y, z);
    }
  }
  void list_near_boxes(int64_t begin, int64_t end, Vector x, Vector y, Vector z) {
    for (int64_t i = begin; i < end; i += S::kLanes) {
      const Vector bound = boxes_.bounds.sq_distance_from(x, y, z, i);
      listed_boxes_.append(S::less(bound, S::load(box_highest_.get() + i)), i);
    }
  }

  // The search for a box's highest distance comes after the next box's arithmetic, which need not wait for it then.
  void lower_boxes(Vector x, Vector y, Vector z) {
    if (listed_boxes_.count() == 0) return;
    const T *box_x = boxes_.x, *box_y = boxes_.y, *box_z = boxes_.z;
    T *sq_dist = sq_dist_.get(), *box_highest = box_highest_.get();
    const auto lower = [=](int64_t i) { return lower_box(box_x + i, box_y + i, box_z + i, sq_dist + i, x, y, z); };
    const Index *box = listed_boxes_.begin(), *end = listed_boxes_.end();
    Vector last_highest = lower(*box * kBoxSize);
    for (++box; box < end; ++box) {
      const Vector highest = lower(*box * kBoxSize);
      box_highest[box[-1]] = S::highest(last_highest);
      last_highest = highest;
    }
    box_highest[box[-1]] = S::highest(last_highest);
  }
  // Lowers the distances of one box to those to (x, y, z); returns the highest of each lane.
  static Vector lower_box(const T* box_x, const T* box_y, const T* box_z, T* sq_dist, Vector x, Vector y, Vector z) {
    Vector highest = S::broadcast(kPadding);
    for (int64_t i = 0; i < kBoxSize; i += S::kLanes) {
      const Vector d = sq_distance<isa>(S::load(box_x + i), S::load(box_y + i), S::load(box_z + i), x, y, z);
      const Vector nearest = S::smaller(d, S::load(sq_dist + i));  // d is NaN for padding, which stays
      S::store(sq_dist + i, nearest);
      highest = S::larger(nearest, highest);
    }
    return highest;
  }

  void update_groups() {
    for (const Index group : listed_groups_) {
      group_highest_[group] = S::highest(highest(box_highest_.get() + group * kBoxesInGroup, kBoxesInGroup));
    }
  }

  // ---- which point is the farthest

  // Of each lane.
  static Vector highest(const T* sq_dist, int64_t count) {
    Vector highest = S::load(sq_dist);
    for (int64_t i = S::kLanes; i < count; i += S::kLanes) highest = S::larger(S::load(sq_dist + i), highest);
    return highest;
  }

  // Lists the boxes that have the highest distance: mostly one.
  void list_highest(Vector value) {
    listed_boxes_.clear();
    if (!by_group_) return list_highest_of(box_highest_.get(), 0, boxes_.num_boxes, value, listed_boxes_);
    listed_groups_.clear();
    list_highest_of(group_highest_.get(), 0, boxes_.num_groups, value, listed_groups_);
    for (const Index group : listed_groups_) {
      list_highest_of(box_highest_.get(), group * kBoxesInGroup, (group + 1) * kBoxesInGroup, value, listed_boxes_);
    }
  }
  static void list_highest_of(const T* sq_dist, int64_t begin, int64_t end, Vector value, NumberList<isa, T>& list) {
    for (int64_t i = begin; i < end; i += S::kLanes) list.append(S::at_most(value, S::load(sq_dist + i)), i);
  }

  // Bit i is set where point begin + i of a box has this distance.
  uint64_t equal_in_box(int64_t begin, Vector value) const {
    static_assert(kBoxSize <= 64);
    uint64_t equal = 0;
    for (int64_t i = 0; i < kBoxSize; i += S::kLanes) {
      equal |= uint64_t{S::at_most(value, S::load(sq_dist_.get() + begin + i))} << i;
    }
    return equal;
  }

  // The lowest index of all points of the listed boxes that have this distance.
  int64_t first_of_many(Vector value) const {
    auto first = S::broadcast_index(Boxes<isa, T>::kNoPoint);
    for (const Index box : listed_boxes_) {
      for (int64_t i = box * kBoxSize; i < (box + int64_t{1}) * kBoxSize; i += S::kLanes) {
        const auto index = S::load_index(boxes_.index + i);
        first = (S::load(sq_dist_.get() + i) == value) & (index < first) ? index : first;
      }
    }
    Index lanes[S::kLanes];
    S::store_index(lanes, first);
    for (const Index index : lanes) lanes[0] = index < lanes[0] ? index : lanes[0];
    return lanes[0];
  }

  const T* points_ = nullptr;
  Boxes<isa, T> boxes_;
  bool by_group_ = false;
  Scratch<isa, T> sq_dist_;        // of each point in the boxes' order
  Scratch<isa, T> box_highest_;    // of each box
  Scratch<isa, T> group_highest_;  // of each group, where by_group_
  NumberList<isa, T> listed_boxes_, listed_groups_;
};

}  // namespace jointmae
