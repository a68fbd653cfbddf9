// By the size of the pairs: tiny ones many at a time, small ones every point against every other, others by boxes. Over
// pairs where there are enough of them for the threads, over parts of a pair elsewhere.
#include <algorithm>

#include "chamfer_distance/backward.h"
#include "chamfer_distance/box_search.h"
#include "chamfer_distance/brute.h"
#include "chamfer_distance/chamfer_distance.h"
#include "chamfer_distance/many_pairs.h"
#include "common/parallel.h"

namespace jointmae {
namespace {

// B pairs of clouds, or one, and where their results go.
template <Isa isa, typename T>
struct Pairs {
  const T *x, *y;                        // [B, N, 3], [B, M, 3]
  const int64_t *lengths_x, *lengths_y;  // [B] or null
  T *d_xy, *d_yx;                        // [B, N], [B, M]
  int64_t *index_xy, *index_yx;          // [B, N], [B, M]
  int64_t N, M;

  // Those from b on.
  Pairs from(int64_t b) const {
    return {x + b * N * 3,
            y + b * M * 3,
            lengths_x ? lengths_x + b : nullptr,
            lengths_y ? lengths_y + b : nullptr,
            d_xy + b * N,
            d_yx + b * M,
            index_xy + b * N,
            index_yx + b * M,
            N,
            M};
  }
  // The number of points in the first pair.
  int64_t n() const { return lengths_x ? *lengths_x : N; }
  int64_t m() const { return lengths_y ? *lengths_y : M; }

  // The padding of the first pair.
  void clear() const {
    for (int64_t i = n(); i < N; ++i) d_xy[i] = 0, index_xy[i] = 0;
    for (int64_t j = m(); j < M; ++j) d_yx[j] = 0, index_yx[j] = 0;
  }
};

int64_t grain_for(int64_t count, int num_threads) { return std::max<int64_t>(1, count / (8 * num_threads)); }

template <Isa isa, typename T>
void by_many(const Pairs<isa, T>& pairs, int64_t B, int num_threads) {
  constexpr int64_t L = Simd<isa, T>::kLanes;
  const int64_t num_bundles = (B + L - 1) / L;
  parallel_for(num_bundles, grain_for(num_bundles, num_threads), num_threads, [=](int64_t begin, int64_t end) {
    LaneClouds<isa, T> x(pairs.N), y(pairs.M);
    for (int64_t b = begin * L; b < std::min(end * L, B); b += L) {
      const Pairs<isa, T> some = pairs.from(b);
      const int64_t count = std::min(L, B - b);
      x.load(some.x, some.lengths_x, count);
      y.load(some.y, some.lengths_y, count);
      meet_all(x, y);
      x.store(some.d_xy, some.index_xy, some.lengths_x, count);
      y.store(some.d_yx, some.index_yx, some.lengths_y, count);
    }
  });
}

template <Isa isa, typename T>
void brute(const Pairs<isa, T>& pairs, int64_t B, int num_threads) {
  const auto run = [=](Brute<isa, T>& search, int64_t b, int64_t num_ranges) {
    const Pairs<isa, T> pair = pairs.from(b);
    search.run(pair.x, pair.n(), pair.y, pair.m(), pair.d_xy, pair.d_yx, pair.index_xy, pair.index_yx,
               std::min(num_ranges, pair.n()), num_threads);
    pair.clear();
  };
  if (B < num_threads) {
    Brute<isa, T> search(pairs.N, pairs.M, num_threads);
    for (int64_t b = 0; b < B; ++b) run(search, b, num_threads);
    return;
  }
  parallel_for(B, grain_for(B, num_threads), num_threads, [=](int64_t begin, int64_t end) {
    Brute<isa, T> search(pairs.N, pairs.M, 1);
    for (int64_t b = begin; b < end; ++b) run(search, b, 1);
  });
}

constexpr int64_t kProbes = 4, kEnoughToProbe = 64;  // boxes
constexpr int64_t kWorthThreads = 1 << 14;           // points of a pair that is not left to one thread

template <Isa isa, typename T>
void by_boxes(const Pairs<isa, T>& pairs, int64_t B, int num_threads) {
  const auto search = [](const BoxedCloud<isa, T>& from, const BoxedCloud<isa, T>& to, T* d, int64_t* index,
                         int threads) {
    const int64_t num_boxes = from.boxes.num_boxes;
    parallel_for(num_boxes, grain_for(num_boxes, threads), threads, [&, d, index](int64_t first, int64_t last) {
      BoxSearch<isa, T>(from, to, d, index).run(first, last);
    });
  };
  const auto run = [=](BoxedCloud<isa, T>& x, BoxedCloud<isa, T>& y, int64_t b, int threads) {
    const Pairs<isa, T> pair = pairs.from(b);
    x.build(pair.x, pair.n(), threads);
    y.build(pair.y, pair.m(), threads);
    if (std::min(x.boxes.num_boxes, y.boxes.num_boxes) >= kEnoughToProbe) {
      const bool fast = BoxSearch<isa, T>(x, y, pair.d_xy, pair.index_xy).is_worth_it(kProbes) &&
                        BoxSearch<isa, T>(y, x, pair.d_yx, pair.index_yx).is_worth_it(kProbes);
      if (!fast) return brute(pair, 1, threads);
    }
    search(x, y, pair.d_xy, pair.index_xy, threads);
    search(y, x, pair.d_yx, pair.index_yx, threads);
    pair.clear();
  };
  const bool is_small = std::max(pairs.N, pairs.M) < kWorthThreads;
  const bool over_pairs = B >= num_threads && (is_small || B >= 4 * num_threads);
  parallel_for(over_pairs ? B : 1, grain_for(B, num_threads), num_threads, [=](int64_t begin, int64_t end) {
    BoxedCloud<isa, T> x(pairs.N), y(pairs.M);
    for (int64_t b = begin; b < (over_pairs ? end : B); ++b) run(x, y, b, over_pairs ? 1 : num_threads);
  });
}

// As measured: a lane's share of a vector is cheap, but needs many pairs; sorting both clouds must be paid back.
ChamferCpuPath path_for(int64_t B, int64_t N, int64_t M, int64_t num_lanes, int num_threads) {
  constexpr int64_t kTiny = 64, kMostPerLane = 32;  // points
  constexpr int64_t kFewestInBoxes = 256;           // of N * M / (N + M)
  const int64_t most = std::max(N, M);
  if (most <= kTiny ? B >= num_lanes / 2 : most <= kMostPerLane * num_lanes && B >= num_lanes * num_threads) {
    return ChamferCpuPath::many_pairs;
  }
  return N >= kFewestInBoxes * (N + M) / M ? ChamferCpuPath::boxes : ChamferCpuPath::brute;
}

}  // namespace

template <Isa isa, typename T>
void chamfer_distance_cpu(const T* x, const T* y, const int64_t* lengths_x, const int64_t* lengths_y, T* d_xy, T* d_yx,
                          int64_t* index_xy, int64_t* index_yx, int64_t B, int64_t N, int64_t M, ChamferCpuPath path,
                          int num_threads) {
  const Pairs<isa, T> pairs{x, y, lengths_x, lengths_y, d_xy, d_yx, index_xy, index_yx, N, M};
  if (path == ChamferCpuPath::by_size) path = path_for(B, N, M, Simd<isa, T>::kLanes, num_threads);
  if (path == ChamferCpuPath::many_pairs) return by_many(pairs, B, num_threads);
  if (path == ChamferCpuPath::boxes) return by_boxes(pairs, B, num_threads);
  brute(pairs, B, num_threads);
}

template <Isa isa, typename T>
void chamfer_distance_backward_cpu(const T* grad_d_xy, const T* grad_d_yx, int64_t step_xy, int64_t step_yx, const T* x,
                                   const T* y, const int64_t* lengths_x, const int64_t* lengths_y,
                                   const int64_t* index_xy, const int64_t* index_yx, T* grad_x, T* grad_y, int64_t B,
                                   int64_t N, int64_t M, int num_threads) {
  const auto side_x = [=](int64_t b) {
    return GradientSide<isa, T>{grad_d_xy + b * N * step_xy,
                                x + b * N * 3,
                                index_xy + b * N,
                                grad_x + b * N * 3,
                                lengths_x ? lengths_x[b] : N,
                                N,
                                step_xy};
  };
  const auto side_y = [=](int64_t b) {
    return GradientSide<isa, T>{grad_d_yx + b * M * step_yx,
                                y + b * M * 3,
                                index_yx + b * M,
                                grad_y + b * M * 3,
                                lengths_y ? lengths_y[b] : M,
                                M,
                                step_yx};
  };
  if (B < num_threads) {
    for (int64_t b = 0; b < B; ++b) gradient_of_large_pair(side_x(b), side_y(b), num_threads);
    return;
  }
  parallel_for(B, grain_for(B, num_threads), num_threads, [=](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) gradient_of_pair(side_x(b), side_y(b));
  });
}

template void chamfer_distance_cpu<kIsa, float>(const float*, const float*, const int64_t*, const int64_t*, float*,
                                                float*, int64_t*, int64_t*, int64_t, int64_t, int64_t, ChamferCpuPath,
                                                int);
template void chamfer_distance_cpu<kIsa, double>(const double*, const double*, const int64_t*, const int64_t*, double*,
                                                 double*, int64_t*, int64_t*, int64_t, int64_t, int64_t, ChamferCpuPath,
                                                 int);
template void chamfer_distance_backward_cpu<kIsa, float>(const float*, const float*, int64_t, int64_t, const float*,
                                                         const float*, const int64_t*, const int64_t*, const int64_t*,
                                                         const int64_t*, float*, float*, int64_t, int64_t, int64_t,
                                                         int);
template void chamfer_distance_backward_cpu<kIsa, double>(const double*, const double*, int64_t, int64_t, const double*,
                                                          const double*, const int64_t*, const int64_t*, const int64_t*,
                                                          const int64_t*, double*, double*, int64_t, int64_t, int64_t,
                                                          int);

}  // namespace jointmae
