// The K nearest for few K and few points: a vector of queries at a time, each with its list in its lane.
#pragma once

#include <cstdint>
#include <limits>

#include "common/coordinates.h"
#include "common/isa.h"
#include "common/simd.h"

namespace jointmae::knn {

template <Isa isa, typename T, int K>
class FewNearest {
  using S = Simd<isa, T>;
  using Vector = typename S::Vector;
  using IndexVector = typename S::IndexVector;

 public:
  // queries [count, 3], at most as many as there are lanes.
  FewNearest(const T* queries, int64_t count) : count_(count) {
    T lanes[3][S::kLanes];
    for (int64_t lane = 0; lane < S::kLanes; ++lane) {
      for (int c = 0; c < 3; ++c) lanes[c][lane] = queries[(lane < count ? lane : 0) * 3 + c];
    }
    x_ = S::load(lanes[0]), y_ = S::load(lanes[1]), z_ = S::load(lanes[2]);
    for (int i = 0; i < K; ++i) {
      sq_dist_[i] = S::broadcast(std::numeric_limits<T>::quiet_NaN());
      index_[i] = S::broadcast_index(0);
    }
  }

  void scan(const T* points, int64_t N) {  // [N, 3]
    for (int64_t n = 0; n < N; ++n) {
      const T* point = points + 3 * n;
      insert(sq_distance<isa>(S::broadcast(point[0]), S::broadcast(point[1]), S::broadcast(point[2]), x_, y_, z_),
             S::broadcast_index(static_cast<typename S::Index>(n)));
    }
  }

  void write(T* sq_dists, int64_t* indices) const {  // [count, K]
    for (int i = 0; i < K; ++i) {
      T sq_dist[S::kLanes];
      typename S::Index index[S::kLanes];
      S::store(sq_dist, sq_dist_[i]);
      S::store_index(index, index_[i]);
      for (int64_t lane = 0; lane < count_; ++lane) {
        sq_dists[lane * K + i] = sq_dist[lane];
        indices[lane * K + i] = index[lane];
      }
    }
  }

 private:
  // Points come in the order of their indices, so that of equals those in the list stay before the new one; anything
  // comes before NaN. What is farther moves down, the last place first, so that each still finds the old one above it.
  void insert(Vector d, IndexVector index) {
    for (int i = K - 1; i >= 0; --i) {
      Vector moved = d;
      IndexVector moved_index = index;
      if (i > 0) {
        const auto stays_above = sq_dist_[i - 1] <= d;
        moved = stays_above ? d : sq_dist_[i - 1];
        moved_index = stays_above ? index : index_[i - 1];
      }
      const auto stays = sq_dist_[i] <= d;
      sq_dist_[i] = stays ? sq_dist_[i] : moved;
      index_[i] = stays ? index_[i] : moved_index;
    }
  }

  const int64_t count_;
  Vector x_, y_, z_;
  Vector sq_dist_[K];
  IndexVector index_[K];
};

}  // namespace jointmae::knn
