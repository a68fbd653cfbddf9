// The search of one cloud through its boxes: only those that may hold one of a query's k nearest are scanned.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common/boxes.h"
#include "common/curve_order.h"
#include "common/isa.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "knn/candidates.h"
#include "knn/core.h"
#include "knn/scan.h"

namespace jointmae::knn {

// Of queries that follow each other along the curve a tile shares its work: the core, boxes that are scanned first and
// give each query a limit, and the list of all others within reach of the tile, of which a query then scans those
// within its own limit.
template <Isa isa, typename T>
class BoxSearch {
  using S = Simd<isa, T>;
  using Index = typename S::Index;

 public:
  // lowest_index [num_boxes]: of the points in each box.
  BoxSearch(const Boxes<isa, T>& boxes, const Index* lowest_index, int64_t k)
      : boxes_(boxes),
        lowest_index_of_box_(lowest_index),
        k_(k),
        core_(boxes, k),
        scan_(k, core_.num_points()),
        listed_(boxes.num_boxes),
        lowest_index_(boxes.num_boxes + S::kLanes),
        bounds_(boxes.num_boxes) {}

  // The queries at begin..end-1 of their order along the curve.
  void search_tile(const T* queries, const CurveOrder<isa, T>& order, int64_t begin, int64_t end, T* sq_dists,
                   int64_t* indices) {
    set_tile(queries, order, begin, end);
    for (int64_t place = begin; place < end; ++place) {
      const int64_t q = order.at(place);
      search(queries + q * 3, sq_dists + q * k_, indices + q * k_);
    }
  }

 private:
  void set_tile(const T* queries, const CurveOrder<isa, T>& order, int64_t begin, int64_t end) {
    T center[3];
    for (int c = 0; c < 3; ++c) {
      low_[c] = high_[c] = queries[order.at(begin) * 3 + c];
      for (int64_t place = begin + 1; place < end; ++place) {
        const T value = queries[order.at(place) * 3 + c];
        low_[c] = value < low_[c] ? value : low_[c];
        high_[c] = larger<isa>(value, high_[c]);
      }
      center[c] = low_[c] / 2 + high_[c] / 2;
    }
    core_.choose(center);
    reach_ = -1;
  }

  void search(const T* query, T* sq_dists, int64_t* indices) {
    scan_.set_query(query);
    Limit<isa, T> limit{scan_.first(core_.points(), 0, core_.num_points())};
    if (scan_.candidates.crowded()) {
      limit = scan_.candidates.shrink(limit.sq_dist);
    } else if (limit.sq_dist == std::numeric_limits<T>::infinity()) {  // more groups had minima to give than points
      limit = scan_.candidates.keep_nearest();
    }
    if (!(limit.sq_dist <= reach_)) list_within(limit.sq_dist * T(1.5));
    const PointArrays<isa, T> points{boxes_.x, boxes_.y, boxes_.z, boxes_.index};
    for (int64_t i = 0; i < num_listed_; i += S::kLanes) {
      for (unsigned hits = listed_within(limit, i); hits != 0; hits &= hits - 1) {
        const int64_t place = i + S::lowest_bit(hits);
        if (place >= num_listed_) break;
        const int64_t begin = listed_[place] * kBoxSize;
        scan_.next(points, begin, begin + kBoxSize, limit.sq_dist);
        if (scan_.candidates.crowded()) limit = scan_.candidates.shrink(limit.sq_dist);
      }
    }
    scan_.candidates.write_nearest(sq_dists, indices);
  }

  // Bit `lane` is set where the box at i + lane of the list may have a point within the limit. Where the bound is the
  // limit itself its indices count: else all boxes at the one place of many equal points would be scanned.
  unsigned listed_within(const Limit<isa, T>& limit, int64_t i) const {
    const auto bound = bounds_.sq_distance_from(scan_.x, scan_.y, scan_.z, i);
    const auto sq_dist = S::broadcast(limit.sq_dist), nearer = S::broadcast(T(-1));
    const auto too_late = S::load_index(lowest_index_.get() + i) > S::broadcast_index(limit.last_index);
    return S::at_most(bound, sq_dist) & ~(S::at_most(sq_dist, too_late ? bound : nearer));
  }

  // Lists the boxes that a query of the tile may find points in, at a squared distance of at most `reach`.
  void list_within(T reach) {
    reach_ = reach;
    num_listed_ = 0;
    for (int64_t i = 0; i < boxes_.num_groups; i += S::kLanes) {
      const auto bound = boxes_.group_bounds.sq_distance_from(low_, high_, i);
      for (unsigned hits = S::at_most(bound, S::broadcast(reach)); hits != 0; hits &= hits - 1) {
        list_of_group(i + S::lowest_bit(hits));
      }
    }
    bounds_.pad(num_listed_);
  }

  void list_of_group(int64_t group) {
    const int64_t begin = group * kBoxesInGroup, end = std::min(begin + kBoxesInGroup, boxes_.num_boxes);
    for (int64_t i = begin; i < end; i += S::kLanes) {
      const auto bound = boxes_.bounds.sq_distance_from(low_, high_, i);
      for (unsigned hits = S::at_most(bound, S::broadcast(reach_)); hits != 0; hits &= hits - 1) {
        const int64_t box = i + S::lowest_bit(hits);
        if (box < end && !core_.contains(box)) list(box);
      }
    }
  }

  void list(int64_t box) {
    listed_[num_listed_] = box;
    lowest_index_[num_listed_] = lowest_index_of_box_[box];
    for (int c = 0; c < 3; ++c) {
      bounds_.low[c][num_listed_] = boxes_.bounds.low[c][box];
      bounds_.high[c][num_listed_] = boxes_.bounds.high[c][box];
    }
    ++num_listed_;
  }

  const Boxes<isa, T>& boxes_;
  const Index* const lowest_index_of_box_;
  const int64_t k_;
  Core<isa, T> core_;
  Scan<isa, T> scan_;
  T low_[3], high_[3];  // the corners of the tile
  T reach_ = -1;        // how far the list reaches
  int64_t num_listed_ = 0;
  Scratch<isa, int64_t> listed_;      // boxes outside of the core
  Scratch<isa, Index> lowest_index_;  // of the points in each
  Bounds<isa, T> bounds_;             // of each
};

// One cloud after another.
template <Isa isa, typename T>
class BoxedClouds {
 public:
  BoxedClouds(int64_t M, int64_t N, int64_t k)
      : M_(M), N_(N), k_(k), boxes_(N), lowest_index_(boxes_.boxes_for(N)), order_(M) {}

  void search(const T* queries,  // [M, 3]
              const T* points,   // [N, 3], of which `length` count
              int64_t length, T* sq_dists, int64_t* indices, int num_threads) {
    boxes_.build(points, length, num_threads);
    for (int64_t box = 0; box < boxes_.num_boxes; ++box) lowest_index_[box] = lowest_index(box);
    order_.sort(queries, M_, num_threads);
    const int64_t tile = std::clamp<int64_t>(kTileSpan * M_ / N_, 1, kMaxTile), num_tiles = (M_ + tile - 1) / tile;
    const int64_t grain = num_threads == 1 ? num_tiles : std::max<int64_t>(1, num_tiles / (8 * num_threads));
    parallel_for(num_tiles, grain, num_threads, [=](int64_t begin, int64_t end) {
      BoxSearch<isa, T> search(boxes_, lowest_index_.get(), k_);
      for (int64_t t = begin; t < end; ++t) {
        search.search_tile(queries, order_, t * tile, std::min((t + 1) * tile, M_), sq_dists, indices);
      }
    });
  }

 private:
  using Index = typename Simd<isa, T>::Index;

  Index lowest_index(int64_t box) const {
    const Index* index = boxes_.index + box * kBoxSize;
    Index lowest = index[0];
#pragma omp simd reduction(min : lowest)
    for (int64_t i = 0; i < kBoxSize; ++i) lowest = index[i] < lowest ? index[i] : lowest;
    return lowest;
  }

  static constexpr int64_t kTileSpan = 128;  // points that the queries of a tile span
  static constexpr int64_t kMaxTile = 16;    // queries

  const int64_t M_, N_, k_;
  Boxes<isa, T> boxes_;
  Scratch<isa, Index> lowest_index_;  // of the points in each box
  CurveOrder<isa, T> order_;
};

}  // namespace jointmae::knn
