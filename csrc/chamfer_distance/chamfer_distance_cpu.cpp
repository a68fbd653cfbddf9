// One thread per pair of clouds, or per range of x where there are fewer pairs than threads. Each row (a point of x)
// meets all columns (the points of y) once, for both directions.
#include <algorithm>
#include <limits>

#include "chamfer_distance/chamfer_distance.h"
#include "common/coordinates.h"
#include "common/parallel.h"
#include "common/scratch.h"

namespace jointmae {
namespace {

constexpr int64_t kTile = 512;  // columns whose minimum is taken at a time, so that the arg-min search reads one tile

// What rows begin..end-1 of x say about the columns of y.
template <Isa isa, typename T>
struct Columns {
  T* nearest;    // [M], squared distance
  int32_t* row;  // [M]
};

// One row against `count` columns: their minimum; columns that this row is strictly nearer to become its own.
template <Isa isa, typename T>
T meet(const T* __restrict__ x, const T* __restrict__ y, const T* __restrict__ z, const T* point, int32_t row,
       T* __restrict__ nearest, int32_t* __restrict__ nearest_row, int64_t count) {
  const T px = point[0], py = point[1], pz = point[2];
  T minimum = std::numeric_limits<T>::infinity();
#pragma omp simd reduction(min : minimum)
  for (int64_t j = 0; j < count; ++j) {
    const T d = sq_distance<isa>(x[j], y[j], z[j], px, py, pz);
    nearest_row[j] = d < nearest[j] ? row : nearest_row[j];
    nearest[j] = d < nearest[j] ? d : nearest[j];
    minimum = d < minimum ? d : minimum;
  }
  return minimum;
}

template <Isa isa, typename T>
void meet_rows(const T* rows, int64_t begin, int64_t end, const T* coordinates, int64_t M, Columns<isa, T> columns,
               T* d_xy, int64_t* index_xy) {
  const T *x = coordinates, *y = x + M, *z = y + M;
  for (int64_t j = 0; j < M; ++j) {
    columns.nearest[j] = std::numeric_limits<T>::infinity();
    columns.row[j] = static_cast<int32_t>(begin);
  }
  for (int64_t i = begin; i < end; ++i) {
    const T* point = rows + 3 * i;
    T best = std::numeric_limits<T>::infinity();
    int64_t tile = 0;
    for (int64_t first = 0; first < M; first += kTile) {
      const T minimum = meet<isa>(x + first, y + first, z + first, point, static_cast<int32_t>(i),
                                  columns.nearest + first, columns.row + first, std::min(kTile, M - first));
      if (minimum < best) {  // strictly: the first tile of the minimum stays
        best = minimum;
        tile = first;
      }
    }
    int64_t j = tile;
    while (sq_distance<isa>(x[j], y[j], z[j], point[0], point[1], point[2]) != best) ++j;
    d_xy[i] = best;
    index_xy[i] = j;
  }
}

}  // namespace

template <Isa isa, typename T>
void chamfer_distance_cpu(const T* x, const T* y, const int64_t* lengths_x, const int64_t* lengths_y, T* d_xy, T* d_yx,
                          int64_t* index_xy, int64_t* index_yx, int64_t B, int64_t N, int64_t M, int num_threads) {
  if (B == 0) return;
  // Row ranges per pair: 1 where there are pairs enough for the threads.
  const int64_t num_ranges = std::clamp<int64_t>(num_threads / B, 1, N);
  Scratch<isa, T> range_nearest(num_ranges > 1 ? B * num_ranges * M : 0);
  Scratch<isa, int32_t> range_row(num_ranges > 1 ? B * num_ranges * M : 0);
  T* all_nearest = range_nearest.get();
  int32_t* all_rows = range_row.get();
  const int64_t num_tasks = B * num_ranges;
  const int64_t grain = std::max<int64_t>(1, num_tasks / (8 * num_threads));
  parallel_for(num_tasks, grain, num_threads, [=](int64_t first, int64_t last) {
    Scratch<isa, T> coordinates(3 * M);
    Scratch<isa, int32_t> row(M);
    for (int64_t task = first; task < last; ++task) {
      const int64_t b = task / num_ranges, range = task % num_ranges;
      const int64_t n = lengths_x ? lengths_x[b] : N, m = lengths_y ? lengths_y[b] : M;
      const int64_t begin = n * range / num_ranges, end = n * (range + 1) / num_ranges;
      split_coordinates<isa>(y + b * M * 3, coordinates.get(), m);
      const Columns<isa, T> columns = num_ranges == 1 ? Columns<isa, T>{d_yx + b * M, row.get()}
                                                      : Columns<isa, T>{all_nearest + task * M, all_rows + task * M};
      meet_rows(x + b * N * 3, begin, end, coordinates.get(), m, columns, d_xy + b * N, index_xy + b * N);
      if (num_ranges == 1) {
        for (int64_t j = 0; j < m; ++j) index_yx[b * M + j] = row[j];
        for (int64_t j = m; j < M; ++j) d_yx[b * M + j] = 0, index_yx[b * M + j] = 0;
      }
      if (range == num_ranges - 1) {
        for (int64_t i = n; i < N; ++i) d_xy[b * N + i] = 0, index_xy[b * N + i] = 0;
      }
    }
  });
  if (num_ranges == 1) return;
  for (int64_t b = 0; b < B; ++b) {
    const int64_t m = lengths_y ? lengths_y[b] : M;
    for (int64_t j = 0; j < M; ++j) {
      T nearest = j < m ? all_nearest[b * num_ranges * M + j] : 0;
      int32_t row = j < m ? all_rows[b * num_ranges * M + j] : 0;
      for (int64_t range = 1; range < num_ranges && j < m; ++range) {
        const int64_t other = (b * num_ranges + range) * M + j;
        if (all_nearest[other] < nearest) nearest = all_nearest[other], row = all_rows[other];
      }
      d_yx[b * M + j] = nearest;
      index_yx[b * M + j] = row;
    }
  }
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
