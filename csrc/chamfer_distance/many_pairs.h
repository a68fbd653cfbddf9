// Many pairs of small clouds at once, one in each lane of the vectors: no loop is shorter than the clouds are, nothing
// is reduced across lanes, and nothing is looked for afterwards.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "common/coordinates.h"
#include "common/isa.h"
#include "common/scratch.h"
#include "common/simd.h"

namespace jointmae {

// kLanes clouds [count, 3], number after number, and what is found for their points.
template <Isa isa, typename T>
class LaneClouds {
  using S = Simd<isa, T>;
  using Vector = typename S::Vector;
  using Index = typename S::Index;
  static constexpr int64_t L = S::kLanes;

 public:
  explicit LaneClouds(int64_t num_points)
      : count(num_points), points_(3 * count * L), sq_dists_(count * L), indices_(count * L) {
    points = points_.get(), sq_dists = sq_dists_.get(), indices = indices_.get();
  }

  // clouds [num_clouds, count, 3], num_clouds <= kLanes; lanes without a cloud repeat the last one. Points beyond a
  // cloud's length become NaN, which is not nearer than anything.
  void load(const T* clouds, const int64_t* lengths, int64_t num_clouds) {
    const int64_t size = 3 * count;
    for (int64_t i = 0; i < size; i += L) {
      Vector rows[L];
      for (int64_t lane = 0; lane < L; ++lane) {
        rows[lane] = load_some(clouds + std::min(lane, num_clouds - 1) * size + i, size - i);
      }
      S::transpose(rows);
      for (int64_t r = 0; r < std::min(L, size - i); ++r) S::store(points + (i + r) * L, rows[r]);
    }
    for (int64_t lane = 0; lengths && lane < num_clouds; ++lane) {
      for (int64_t i = 3 * lengths[lane]; i < size; ++i) points[i * L + lane] = std::numeric_limits<T>::quiet_NaN();
    }
  }

  // The other way: [num_clouds, count] of distances and indices, 0 beyond the lengths.
  void store(T* to_sq_dists, int64_t* to_indices, const int64_t* lengths, int64_t num_clouds) const {
    for (int64_t i = 0; i < count; i += L) {
      Vector rows[L], index_rows[L];
      for (int64_t r = 0; r < L; ++r) {
        const int64_t from = std::min(i + r, count - 1) * L;
        rows[r] = S::load(sq_dists + from);
        std::memcpy(index_rows + r, indices + from, sizeof(Vector));
      }
      S::transpose(rows);
      S::transpose(index_rows);
      for (int64_t lane = 0; lane < num_clouds; ++lane) {
        T* d = to_sq_dists + lane * count + i;
        int64_t* index = to_indices + lane * count + i;
        Index index_lanes[L];
        std::memcpy(index_lanes, index_rows + lane, sizeof(Vector));
        if (i + L <= count) {
          S::store(d, rows[lane]);
          for (int64_t r = 0; r < L; ++r) index[r] = index_lanes[r];
        } else {
          T lanes[L];
          S::store(lanes, rows[lane]);
          for (int64_t r = 0; r < count - i; ++r) d[r] = lanes[r], index[r] = index_lanes[r];
        }
      }
    }
    for (int64_t lane = 0; lengths && lane < num_clouds; ++lane) {
      for (int64_t i = lane * count + lengths[lane]; i < (lane + 1) * count; ++i) to_sq_dists[i] = 0, to_indices[i] = 0;
    }
  }

  Vector at(int64_t i, int axis) const { return S::load(points + (3 * i + axis) * L); }

  const int64_t count;
  T *points, *sq_dists;  // [count, 3, kLanes], [count, kLanes]
  Index* indices;        // [count, kLanes]

 private:
  static Vector load_some(const T* from, int64_t available) {
    if (available >= L) return S::load(from);
    T lanes[L] = {};
    for (int64_t i = 0; i < available; ++i) lanes[i] = from[i];
    return S::load(lanes);
  }

  Scratch<isa, T> points_, sq_dists_;
  Scratch<isa, Index> indices_;
};

// kRows points of each x, from `begin` on, against all points of each y.
template <Isa isa, typename T, int64_t kRows>
void meet_rows(const LaneClouds<isa, T>& x, const LaneClouds<isa, T>& y, int64_t begin) {
  using S = Simd<isa, T>;
  using Vector = typename S::Vector;
  using IndexVector = typename S::IndexVector;
  constexpr int64_t L = S::kLanes;
  Vector rx[kRows], ry[kRows], rz[kRows], nearest[kRows];
  IndexVector column_of[kRows], row[kRows];
  for (int64_t r = 0; r < kRows; ++r) {
    rx[r] = x.at(begin + r, 0), ry[r] = x.at(begin + r, 1), rz[r] = x.at(begin + r, 2);
    nearest[r] = S::broadcast(std::numeric_limits<T>::infinity());
    column_of[r] = S::broadcast_index(0), row[r] = S::broadcast_index(static_cast<typename S::Index>(begin + r));
  }
  const IndexVector one = S::broadcast_index(1);
  IndexVector column = S::broadcast_index(0);
  for (int64_t j = 0; j < y.count; ++j, column += one) {
    const Vector cx = y.at(j, 0), cy = y.at(j, 1), cz = y.at(j, 2);
    Vector least = S::load(y.sq_dists + j * L);
    IndexVector row_of = S::load_index(y.indices + j * L);
    for (int64_t r = 0; r < kRows; ++r) {
      const Vector d = sq_distance<isa>(cx, cy, cz, rx[r], ry[r], rz[r]);
      column_of[r] = d < nearest[r] ? column : column_of[r];
      nearest[r] = d < nearest[r] ? d : nearest[r];
      row_of = d < least ? row[r] : row_of;
      least = d < least ? d : least;
    }
    S::store(y.sq_dists + j * L, least);
    S::store_index(y.indices + j * L, row_of);
  }
  for (int64_t r = 0; r < kRows; ++r) {
    S::store(x.sq_dists + (begin + r) * L, nearest[r]);
    S::store_index(x.indices + (begin + r) * L, column_of[r]);
  }
}

template <Isa isa, typename T>
void meet_all(const LaneClouds<isa, T>& x, const LaneClouds<isa, T>& y) {
  using S = Simd<isa, T>;
  constexpr int64_t kRows = 2;  // they share what is loaded and stored for a column
  for (int64_t j = 0; j < y.count; ++j) {
    S::store(y.sq_dists + j * S::kLanes, S::broadcast(std::numeric_limits<T>::infinity()));
    S::store_index(y.indices + j * S::kLanes, S::broadcast_index(0));
  }
  int64_t i = 0;
  for (; i + kRows <= x.count; i += kRows) meet_rows<isa, T, kRows>(x, y, i);
  for (; i < x.count; ++i) meet_rows<isa, T, 1>(x, y, i);
}

}  // namespace jointmae
