// Three ways, chosen by size: all points for each query, all points for a vector of queries (few neighbours), and
// through boxes that may hold a neighbour (many points).
#include <algorithm>
#include <cmath>
#include <limits>

#include "common/coordinates.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "knn/backward.h"
#include "knn/box_search.h"
#include "knn/few.h"
#include "knn/knn.h"
#include "knn/scan.h"

namespace jointmae {
namespace {

constexpr int64_t kLanes = 16;   // at most, of any vector
constexpr int64_t kFew = 4;      // neighbours
constexpr int64_t kTile = 2048;  // points that lie in the first-level cache, with their distances

// Tile by tile; those of the first one give a limit.
template <Isa isa, typename T>
void search(knn::Scan<isa, T>& scan, const T* query, const knn::PointArrays<isa, T>& points, int64_t N, int64_t first,
            T* sq_dists, int64_t* indices) {
  scan.set_query(query);
  T limit = scan.first(points, 0, std::min(first, N));
  for (int64_t begin = first; begin < N; begin += kTile) {
    if (scan.candidates.crowded()) limit = scan.candidates.shrink(limit).sq_dist;
    // Among equals the lower index wins, and k candidates are within the limit.
    const T below = std::nextafter(limit, -std::numeric_limits<T>::infinity());
    scan.next(points, begin, std::min(begin + kTile, N), below);
  }
  scan.candidates.write_nearest(sq_dists, indices);
}

// All points for each query.
template <Isa isa, typename T>
void knn_by_scan(const T* queries, const T* points, const int64_t* lengths, T* sq_dists, int64_t* indices, int64_t B,
                 int64_t M, int64_t N, int64_t k, int num_threads) {
  using Index = typename Simd<isa, T>::Index;
  const int64_t size = Coordinates<isa, T>::size_for(N);
  Scratch<isa, T> memory(B * size);
  Scratch<isa, Index> ascending(N + kLanes);
  for (int64_t i = 0; i < N + kLanes; ++i) ascending[i] = static_cast<Index>(i);
  T* clouds = memory.get();
  const Index* index = ascending.get();
  parallel_for(B, (B + num_threads - 1) / num_threads, num_threads, [=](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      Coordinates<isa, T>(clouds + b * size, N).fill(points + b * N * 3, lengths ? lengths[b] : N);
    }
  });
  const int64_t grain = std::max<int64_t>(1, B * M / (8 * num_threads));
  parallel_for(B * M, grain, num_threads, [=](int64_t begin, int64_t end) {
    // Whole vectors, where a second tile follows: it begins where this one has stopped to read.
    const int64_t first = std::min(N, std::max(kTile, (2 * k + kLanes - 1) / kLanes * kLanes));
    knn::Scan<isa, T> scan(k, std::max(first, std::min(N, kTile)));
    for (int64_t q = begin; q < end; ++q) {
      const int64_t b = q / M;
      const Coordinates<isa, T> cloud(clouds + b * size, N);
      search(scan, queries + q * 3, knn::PointArrays<isa, T>{cloud.x, cloud.y, cloud.z, index},
             lengths ? lengths[b] : N, first, sq_dists + q * k, indices + q * k);
    }
  });
}

// Through the boxes of each cloud.
template <Isa isa, typename T>
void knn_by_boxes(const T* queries, const T* points, const int64_t* lengths, T* sq_dists, int64_t* indices, int64_t B,
                  int64_t M, int64_t N, int64_t k, int num_threads) {
  const bool whole_clouds = B >= 2 * num_threads;  // for each thread
  const int64_t grain = whole_clouds ? std::max<int64_t>(1, B / (4 * num_threads)) : B;
  parallel_for(B, grain, num_threads, [=](int64_t begin, int64_t end) {
    knn::BoxedClouds<isa, T> clouds(M, N, k);
    for (int64_t b = begin; b < end; ++b) {
      clouds.search(queries + b * M * 3, points + b * N * 3, lengths ? lengths[b] : N, sq_dists + b * M * k,
                    indices + b * M * k, whole_clouds ? 1 : num_threads);
    }
  });
}

// Each point against a vector of queries.
template <int K, Isa isa, typename T>
void knn_few(const T* queries, const T* points, const int64_t* lengths, T* sq_dists, int64_t* indices, int64_t B,
             int64_t M, int64_t N, int num_threads) {
  constexpr int64_t kLanes = Simd<isa, T>::kLanes;
  const int64_t vectors = (M + kLanes - 1) / kLanes;  // per cloud
  const int64_t grain = std::max<int64_t>(1, B * vectors / (8 * num_threads));
  parallel_for(B * vectors, grain, num_threads, [=](int64_t begin, int64_t end) {
    for (int64_t v = begin; v < end; ++v) {
      const int64_t b = v / vectors, m = v % vectors * kLanes, q = b * M + m;
      knn::FewNearest<isa, T, K> nearest(queries + q * 3, std::min(kLanes, M - m));
      nearest.scan(points + b * N * 3, lengths ? lengths[b] : N);
      nearest.write(sq_dists + q * K, indices + q * K);
    }
  });
}

template <Isa isa, typename T>
void knn_few(const T* queries, const T* points, const int64_t* lengths, T* sq_dists, int64_t* indices, int64_t B,
             int64_t M, int64_t N, int64_t k, int num_threads) {
  const auto run = [&](auto&& kernel) { kernel(queries, points, lengths, sq_dists, indices, B, M, N, num_threads); };
  switch (k) {
    case 1:
      return run(knn_few<1, isa, T>);
    case 2:
      return run(knn_few<2, isa, T>);
    case 3:
      return run(knn_few<3, isa, T>);
    default:
      return run(knn_few<kFew, isa, T>);
  }
}

enum class Path { by_size, scan, boxes, few };

// By measured times: boxes save little below some 1800 points, and have to be built.
template <Isa isa, typename T>
Path path_for(int64_t M, int64_t N, int64_t k) {
  if (k <= kFew && N <= 1024 && M >= Simd<isa, T>::kLanes) return Path::few;
  if (16 * k <= N && M * (N - 1792) >= 128 * N && M <= std::numeric_limits<int32_t>::max()) return Path::boxes;
  return Path::scan;
}

}  // namespace

template <Isa isa, typename T>
void knn_cpu(const T* queries, const T* points, const int64_t* lengths, T* sq_dists, int64_t* indices, int64_t B,
             int64_t M, int64_t N, int64_t k, int path, int num_threads) {
  const auto run = [&](auto&& kernel) { kernel(queries, points, lengths, sq_dists, indices, B, M, N, k, num_threads); };
  switch (path == 0 ? path_for<isa, T>(M, N, k) : static_cast<Path>(path)) {
    case Path::boxes:
      return run(knn_by_boxes<isa, T>);
    case Path::few:
      if (k <= kFew) return run(knn_few<isa, T>);
      [[fallthrough]];
    default:
      return run(knn_by_scan<isa, T>);
  }
}

template <Isa isa, typename T>
void knn_backward_cpu(const T* grad_sq_dists, const T* queries, const T* points, const int64_t* indices,
                      T* grad_queries, T* grad_points, int64_t B, int64_t M, int64_t N, int64_t k, int num_threads) {
  knn::Backward<isa, T>{grad_sq_dists, queries, points, indices, grad_queries, grad_points, B, M, N, k}.run(
      num_threads);
}

template void knn_cpu<kIsa, float>(const float*, const float*, const int64_t*, float*, int64_t*, int64_t, int64_t,
                                   int64_t, int64_t, int, int);
template void knn_cpu<kIsa, double>(const double*, const double*, const int64_t*, double*, int64_t*, int64_t, int64_t,
                                    int64_t, int64_t, int, int);
template void knn_backward_cpu<kIsa, float>(const float*, const float*, const float*, const int64_t*, float*, float*,
                                            int64_t, int64_t, int64_t, int64_t, int);
template void knn_backward_cpu<kIsa, double>(const double*, const double*, const double*, const int64_t*, double*,
                                             double*, int64_t, int64_t, int64_t, int64_t, int);

}  // namespace jointmae
