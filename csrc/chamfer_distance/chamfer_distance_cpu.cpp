// One thread per pair of clouds, or per range of x where there are fewer pairs than threads. Each row (a point of x)
// meets all columns (the points of y) once, for both directions; the loop keeps minima only. Where a minimum lies is
// known to a tile of columns or a block of rows, in which the equal distance is then looked for.
#include <algorithm>
#include <limits>

#include "chamfer_distance/chamfer_distance.h"
#include "common/coordinates.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "common/simd.h"

namespace jointmae {
namespace {

constexpr int64_t kTile = 256;  // columns

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
void meet_all(const T* x, int64_t begin, int64_t end, const Coordinates<isa, T>& columns, int64_t M,
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

// The padding of ragged clouds, points n..N-1.
template <Isa isa, typename T>
void clear(T* distance, int64_t* index, int64_t n, int64_t N) {
  for (int64_t i = n; i < N; ++i) distance[i] = 0, index[i] = 0;
}

// More threads than pairs: each range of rows keeps what it knows about the columns, and the first range that is
// nearest wins.
template <Isa isa, typename T>
void one_pair(const T* x, int64_t n, const T* y, int64_t m, T* d_xy, T* d_yx, int64_t* index_xy, int64_t* index_yx,
              int64_t num_ranges, int num_threads) {
  using Index = typename Simd<isa, T>::Index;
  const int64_t stride = Simd<isa, T>::round_up(m);
  Scratch<isa, T> row_memory(Coordinates<isa, T>::size_for(n)), column_memory(Coordinates<isa, T>::size_for(m));
  Coordinates<isa, T> rows(row_memory.get(), n), columns(column_memory.get(), m);
  rows.fill(x, n);
  columns.fill(y, m);
  Scratch<isa, T> nearest(num_ranges * stride);
  Scratch<isa, Index> first_row(num_ranges * stride);
  Columns<isa, T> known{nearest.get(), first_row.get()};
  parallel_for(num_ranges, 1, num_threads, [=, &columns](int64_t first, int64_t last) {
    for (int64_t range = first; range < last; ++range) {
      meet_all(x, n * range / num_ranges, n * (range + 1) / num_ranges, columns, m,
               Columns<isa, T>{known.nearest + range * stride, known.first_row + range * stride}, d_xy, index_xy);
    }
  });
  for (int64_t other = stride; other < num_ranges * stride; other += stride) {
    for (int64_t j = 0; j < m; ++j) {
      if (nearest[other + j] < nearest[j]) nearest[j] = nearest[other + j], first_row[j] = first_row[other + j];
    }
  }
  finish(rows, y, m, known, d_yx, index_yx);
}

}  // namespace

template <Isa isa, typename T>
void chamfer_distance_cpu(const T* x, const T* y, const int64_t* lengths_x, const int64_t* lengths_y, T* d_xy, T* d_yx,
                          int64_t* index_xy, int64_t* index_yx, int64_t B, int64_t N, int64_t M, int num_threads) {
  if (B < num_threads) {
    for (int64_t b = 0; b < B; ++b) {
      const int64_t n = lengths_x ? lengths_x[b] : N, m = lengths_y ? lengths_y[b] : M;
      one_pair<isa>(x + b * N * 3, n, y + b * M * 3, m, d_xy + b * N, d_yx + b * M, index_xy + b * N, index_yx + b * M,
                    std::min<int64_t>(num_threads, n), num_threads);
      clear<isa>(d_xy + b * N, index_xy + b * N, n, N);
      clear<isa>(d_yx + b * M, index_yx + b * M, m, M);
    }
    return;
  }
  const int64_t grain = std::max<int64_t>(1, B / (8 * num_threads));
  parallel_for(B, grain, num_threads, [=](int64_t begin, int64_t end) {
    using Index = typename Simd<isa, T>::Index;
    Scratch<isa, T> row_memory(Coordinates<isa, T>::size_for(N)), column_memory(Coordinates<isa, T>::size_for(M));
    Coordinates<isa, T> rows(row_memory.get(), N), columns(column_memory.get(), M);
    Scratch<isa, T> nearest(Simd<isa, T>::round_up(M));
    Scratch<isa, Index> first_row(Simd<isa, T>::round_up(M));
    const Columns<isa, T> known{nearest.get(), first_row.get()};
    for (int64_t b = begin; b < end; ++b) {
      const int64_t n = lengths_x ? lengths_x[b] : N, m = lengths_y ? lengths_y[b] : M;
      rows.fill(x + b * N * 3, n);
      columns.fill(y + b * M * 3, m);
      meet_all(x + b * N * 3, 0, n, columns, m, known, d_xy + b * N, index_xy + b * N);
      finish(rows, y + b * M * 3, m, known, d_yx + b * M, index_yx + b * M);
      clear<isa>(d_xy + b * N, index_xy + b * N, n, N);
      clear<isa>(d_yx + b * M, index_yx + b * M, m, M);
    }
  });
}

namespace {

// Adds the gradient of sum(grad_d * d), d the squared distances from `from` to its nearest in `to`.
template <Isa isa, typename T>
void add_gradient(const T* grad_d, const T* from, const T* to, const int64_t* index, T* grad_from, T* grad_to,
                  int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t j = index[i];
    for (int c = 0; c < 3; ++c) {
      const T grad = 2 * grad_d[i] * (from[3 * i + c] - to[3 * j + c]);
      grad_from[3 * i + c] += grad;
      grad_to[3 * j + c] -= grad;
    }
  }
}

}  // namespace

template <Isa isa, typename T>
void chamfer_distance_backward_cpu(const T* grad_d_xy, const T* grad_d_yx, const T* x, const T* y,
                                   const int64_t* lengths_x, const int64_t* lengths_y, const int64_t* index_xy,
                                   const int64_t* index_yx, T* grad_x, T* grad_y, int64_t B, int64_t N, int64_t M,
                                   int num_threads) {
  const int64_t grain = std::max<int64_t>(1, B / (8 * num_threads));
  parallel_for(B, grain, num_threads, [=](int64_t begin, int64_t end) {
    std::fill(grad_x + begin * N * 3, grad_x + end * N * 3, T(0));
    std::fill(grad_y + begin * M * 3, grad_y + end * M * 3, T(0));
    for (int64_t b = begin; b < end; ++b) {
      const int64_t px = b * N, py = b * M;
      add_gradient<isa>(grad_d_xy + px, x + 3 * px, y + 3 * py, index_xy + px, grad_x + 3 * px, grad_y + 3 * py,
                        lengths_x ? lengths_x[b] : N);
      add_gradient<isa>(grad_d_yx + py, y + 3 * py, x + 3 * px, index_yx + py, grad_y + 3 * py, grad_x + 3 * px,
                        lengths_y ? lengths_y[b] : M);
    }
  });
}

template void chamfer_distance_cpu<kIsa, float>(const float*, const float*, const int64_t*, const int64_t*, float*,
                                                float*, int64_t*, int64_t*, int64_t, int64_t, int64_t, int);
template void chamfer_distance_cpu<kIsa, double>(const double*, const double*, const int64_t*, const int64_t*, double*,
                                                 double*, int64_t*, int64_t*, int64_t, int64_t, int64_t, int);
template void chamfer_distance_backward_cpu<kIsa, float>(const float*, const float*, const float*, const float*,
                                                         const int64_t*, const int64_t*, const int64_t*, const int64_t*,
                                                         float*, float*, int64_t, int64_t, int64_t, int);
template void chamfer_distance_backward_cpu<kIsa, double>(const double*, const double*, const double*, const double*,
                                                          const int64_t*, const int64_t*, const int64_t*,
                                                          const int64_t*, double*, double*, int64_t, int64_t, int64_t,
                                                          int);

}  // namespace jointmae
