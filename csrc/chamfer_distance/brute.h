// One pair of clouds, every point against every other. Each row (a point of x) meets all columns (the points of y)
// once, for both directions; the loop keeps minima only. Where a minimum lies is known to a tile of columns or a block
// of rows, in which the equal distance is then looked for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common/coordinates.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "common/simd.h"

namespace jointmae {

inline constexpr int64_t kTile = 256;  // columns

// Rows that meet a column together: their minima stay in registers.
template <Isa isa>
constexpr int64_t kRows = isa == Isa::avx512 ? 8 : 4;

// The first point from `begin` on at `sq_dist` from (px, py, pz): there must be one.
template <Isa isa, typename T>
int64_t find(const Coordinates<isa, T>& cloud, int64_t begin, const T* point, T sq_dist) {
  using S = Simd<isa, T>;
  const auto px = S::broadcast(point[0]), py = S::broadcast(point[1]), pz = S::broadcast(point[2]);
  const auto wanted = S::broadcast(sq_dist);
  for (int64_t i = begin;; i += S::kLanes) {
    const auto d = sq_distance<isa>(S::load(cloud.x + i), S::load(cloud.y + i), S::load(cloud.z + i), px, py, pz);
    const int64_t lane = S::first_equal(d, wanted);
    if (lane < S::kLanes) return i + lane;
  }
}

// What the rows met so far say about each column.
template <Isa isa, typename T>
struct Columns {
  T* nearest;                               // [M, rounded up to vectors]: squared distance
  typename Simd<isa, T>::Index* first_row;  // [same]: the first row of the block that it belongs to
};

// kRows rows against columns begin..end-1, whole vectors of them: the rows' minima, and what changes for the columns.
template <Isa isa, typename T>
void meet(const Coordinates<isa, T>& columns, int64_t begin, int64_t end, const T (&rows)[kRows<isa>][3],
          int64_t first_row, Columns<isa, T> known, T* minima) {
  using S = Simd<isa, T>;
  using Vector = typename S::Vector;
  constexpr int64_t R = kRows<isa>;
  Vector minimum[R], x[R], y[R], z[R];
  for (int64_t r = 0; r < R; ++r) {
    minimum[r] = S::broadcast(std::numeric_limits<T>::infinity());
    x[r] = S::broadcast(rows[r][0]);
    y[r] = S::broadcast(rows[r][1]);
    z[r] = S::broadcast(rows[r][2]);
  }
  for (int64_t j = begin; j < end; j += S::kLanes) {
    const Vector cx = S::load(columns.x + j), cy = S::load(columns.y + j), cz = S::load(columns.z + j);
    const Vector before = S::load(known.nearest + j);
    Vector nearest = before;
    for (int64_t r = 0; r < R; ++r) {
      const Vector d = sq_distance<isa>(cx, cy, cz, x[r], y[r], z[r]);
      minimum[r] = d < minimum[r] ? d : minimum[r];
      nearest = d < nearest ? d : nearest;
    }
    const auto row = S::load_index(known.first_row + j);
    const auto this_row = S::broadcast_index(static_cast<typename S::Index>(first_row));
    S::store(known.nearest + j, nearest);
    S::store_index(known.first_row + j, nearest < before ? this_row : row);
  }
  for (int64_t r = 0; r < R; ++r) minima[r] = S::lowest(minimum[r]);
}

// Rows begin..end-1 against all M columns.
template <Isa isa, typename T>
void meet_rows_with_all(const T* x, int64_t begin, int64_t end, const Coordinates<isa, T>& columns, int64_t M,
                        Columns<isa, T> known, T* d_xy, int64_t* index_xy) {
  constexpr int64_t R = kRows<isa>;
  const int64_t padded = Simd<isa, T>::round_up(M);
  for (int64_t j = 0; j < padded; ++j) {
    known.nearest[j] = std::numeric_limits<T>::infinity();
    known.first_row[j] = static_cast<typename Simd<isa, T>::Index>(begin);
  }
  for (int64_t i = begin; i < end; i += R) {
    T rows[R][3], best[R], minima[R];
    int64_t tile[R];
    for (int64_t r = 0; r < R; ++r) {
      const T* point = x + 3 * std::min(i + r, end - 1);  // the last row again, where the block is not full
      for (int c = 0; c < 3; ++c) rows[r][c] = point[c];
      best[r] = std::numeric_limits<T>::infinity();
      tile[r] = 0;
    }
    for (int64_t j = 0; j < M; j += kTile) {
      meet(columns, j, std::min(j + kTile, padded), rows, i, known, minima);
      for (int64_t r = 0; r < R; ++r) {
        if (minima[r] < best[r]) best[r] = minima[r], tile[r] = j;  // strictly: the first tile of the minimum stays
      }
    }
    for (int64_t r = 0; r < std::min(R, end - i); ++r) {
      d_xy[i + r] = best[r];
      index_xy[i + r] = find(columns, tile[r], rows[r], best[r]);
    }
  }
}

// From what is known about the M columns to the output.
template <Isa isa, typename T>
void finish(const Coordinates<isa, T>& rows, const T* y, int64_t M, Columns<isa, T> known, T* d_yx, int64_t* index_yx) {
  for (int64_t j = 0; j < M; ++j) {
    d_yx[j] = known.nearest[j];
    index_yx[j] = find(rows, known.first_row[j], y + 3 * j, known.nearest[j]);
  }
}

// Memory for clouds of up to N and M points, and what is known in one range of rows.
template <Isa isa, typename T>
class Brute {
  using S = Simd<isa, T>;

 public:
  Brute(int64_t N, int64_t M, int64_t max_ranges)
      : stride_(S::round_up(M)),
        row_memory_(Coordinates<isa, T>::size_for(N)),
        column_memory_(Coordinates<isa, T>::size_for(M)),
        nearest_(max_ranges * stride_),
        first_row_(max_ranges * stride_),
        rows_(row_memory_.get(), N),
        columns_(column_memory_.get(), M) {}

  // Each range of rows keeps what it knows about the columns, and the first range that is nearest wins.
  void run(const T* x, int64_t n, const T* y, int64_t m, T* d_xy, T* d_yx, int64_t* index_xy, int64_t* index_yx,
           int64_t num_ranges, int num_threads) {
    rows_.fill(x, n);
    columns_.fill(y, m);
    parallel_for(num_ranges, 1, num_threads, [=](int64_t first, int64_t last) {
      for (int64_t range = first; range < last; ++range) {
        const int64_t begin = n * range / num_ranges, end = n * (range + 1) / num_ranges;
        meet_rows_with_all(x, begin, end, columns_, m, known_in(range), d_xy, index_xy);
      }
    });
    const Columns<isa, T> known = known_in(0);
    for (int64_t range = 1; range < num_ranges; ++range) {
      const Columns<isa, T> other = known_in(range);
      for (int64_t j = 0; j < m; ++j) {
        if (!(other.nearest[j] < known.nearest[j])) continue;
        known.nearest[j] = other.nearest[j], known.first_row[j] = other.first_row[j];
      }
    }
    finish(rows_, y, m, known, d_yx, index_yx);
  }

 private:
  Columns<isa, T> known_in(int64_t range) {
    return {nearest_.get() + range * stride_, first_row_.get() + range * stride_};
  }

  int64_t stride_;
  Scratch<isa, T> row_memory_, column_memory_, nearest_;
  Scratch<isa, typename S::Index> first_row_;
  Coordinates<isa, T> rows_, columns_;
};

}  // namespace jointmae
