// The scan of points for the k nearest of one query: all distances, but only the few points within a limit that the k
// nearest cannot exceed become candidates.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common/coordinates.h"
#include "common/isa.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "knn/candidates.h"

namespace jointmae::knn {

// Points as arrays; vectors may begin at any of them. NaN follows the last.
template <Isa isa, typename T>
struct PointArrays {
  const T *x, *y, *z;
  const typename Simd<isa, T>::Index* index;
};

template <Isa isa, typename T>
class Scan {
  using S = Simd<isa, T>;
  using Vector = typename S::Vector;
  using Index = typename S::Index;

 public:
  // Of at most `max_points` a call.
  Scan(int64_t k, int64_t max_points)
      : candidates(k, max_points),
        k_(k),
        num_groups_(groups_for(k)),
        tile_(max_points + num_groups_),
        minima_(num_groups_),
        hits_(max_points / S::kLanes + 1) {}

  void set_query(const T* query) {
    x = S::broadcast(query[0]);
    y = S::broadcast(query[1]);
    z = S::broadcast(query[2]);
    candidates.clear();
  }

  // Points begin..end-1, which are the first of this query; returns a limit that k of them are within, if there are so
  // many: each of num_groups_ interleaved groups has a minimum, and k of these are.
  T first(const PointArrays<isa, T>& points, int64_t begin, int64_t end) {
    T *tile = tile_.get(), *minima = minima_.get();
    for (int64_t g = 0; g < num_groups_; ++g) minima[g] = std::numeric_limits<T>::infinity();
    for (int64_t row = begin; row < end; row += num_groups_) {
      const int64_t row_end = std::min(row + num_groups_, end);
      for (int64_t i = row; i < row_end; i += S::kLanes) {
        const Vector d = distances(points, i), minimum = S::load(minima + (i - row));
        S::store(tile + (i - begin), d);
        S::store(minima + (i - row), d < minimum ? d : minimum);
      }
    }
    const T limit = limit_of<isa>(minima, num_groups_, k_, highest_of_minima());
    append_tile(limit, points.index + begin, end - begin);
    return limit;
  }

  // Those of points begin..end-1 that are within the limit become candidates.
  void next(const PointArrays<isa, T>& points, int64_t begin, int64_t end, T limit) {
    candidates.append_within(limit, begin, end, points.index, [&](int64_t i) { return distances(points, i); });
  }

  Vector x, y, z;  // of the query
  Candidates<isa, T> candidates;

 private:
  // At least 4k, so that few more than k points lie within.
  static int64_t groups_for(int64_t k) { return std::max<int64_t>(64, (4 * k + 15) / 16 * 16); }

  Vector distances(const PointArrays<isa, T>& points, int64_t i) const {
    return sq_distance<isa>(S::load(points.x + i), S::load(points.y + i), S::load(points.z + i), x, y, z);
  }

  // At least k minima are within it: the groups are joined while at least k remain.
  T highest_of_minima() {
    const T* minima = minima_.get();
    int64_t joined = num_groups_;
    while (joined % (2 * S::kLanes) == 0 && joined / 2 >= k_) joined /= 2;
    Vector highest = S::broadcast(0);
    for (int64_t g = 0; g < joined; g += S::kLanes) {
      Vector lowest = S::load(minima + g);
      for (int64_t h = g + joined; h < num_groups_; h += joined) {
        const Vector other = S::load(minima + h);
        lowest = other < lowest ? other : lowest;
      }
      highest = lowest > highest ? lowest : highest;
    }
    return S::highest(highest);
  }

  // Vectors with a candidate are listed first, without a branch that would be guessed wrong.
  void append_tile(T limit, const Index* index, int64_t count) {
    const T* tile = tile_.get();
    int32_t* hits = hits_.get();
    int64_t num_hits = 0;
    for (int64_t i = 0; i < count; i += S::kLanes) {
      hits[num_hits] = static_cast<int32_t>(i);
      num_hits += S::at_most(S::load(tile + i), S::broadcast(limit)) != 0 ? 1 : 0;
    }
    for (int64_t hit = 0; hit < num_hits; ++hit) {
      const int64_t i = hits[hit];
      candidates.append_within(limit, i, i + 1, index, [=](int64_t j) { return S::load(tile + j); });
    }
  }

  const int64_t k_, num_groups_;
  Scratch<isa, T> tile_, minima_;  // distances; the lowest of each group
  Scratch<isa, int32_t> hits_;     // vectors of the tile that hold a candidate
};

}  // namespace jointmae::knn
