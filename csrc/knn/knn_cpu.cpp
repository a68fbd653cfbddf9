// One thread per range of queries. Per query, tile by tile: all distances, then only the few points within a limit that
// the k nearest cannot exceed are kept as candidates, in the order of their indices; in the end these are ranked.
#include <algorithm>
#include <cmath>
#include <limits>

#include "common/coordinates.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "knn/knn.h"

namespace jointmae {
namespace {

constexpr int64_t kTile = 2048;      // points that lie in the first-level cache, with their distances
constexpr int64_t kLanes = 16;       // buffers have room for, and are padded to, whole vectors
constexpr int64_t kRankLimit = 512;  // more candidates than this are sorted, fewer are ranked by counting

template <Isa isa, typename T>
struct Key {
  T sq_dist;
  typename Simd<isa, T>::Index index;
  bool operator<(const Key& other) const {
    return sq_dist < other.sq_dist || (sq_dist == other.sq_dist && index < other.index);
  }
};

template <Isa isa, typename T>
int64_t count_within(const T* sq_dist, int64_t count, T limit) {
  int32_t within = 0;
#pragma omp simd reduction(+ : within)
  for (int64_t i = 0; i < count; ++i) within += sq_dist[i] <= limit ? 1 : 0;
  return within;
}

// A limit that at least `k` and, ties apart, not many more of `count` values are within, by bisection.
template <Isa isa, typename T>
T limit_of(const T* values, int64_t count, int64_t k) {
  T low = values[0], high = values[0];
#pragma omp simd reduction(min : low) reduction(max : high)
  for (int64_t i = 0; i < count; ++i) {
    low = values[i] < low ? values[i] : low;
    high = values[i] > high ? values[i] : high;
  }
  for (int step = 0; step < 24; ++step) {
    const T middle = low + (high - low) / 2;
    if (!(low < middle && middle < high)) break;  // also where high is infinite
    const int64_t within = count_within<isa>(values, count, middle);
    if (within < k) {
      low = middle;
    } else {
      high = middle;
      if (within <= k + k / 4) break;
    }
  }
  return high;
}

// What a thread needs for one query after another.
template <Isa isa, typename T>
struct Workspace {
  using Index = typename Simd<isa, T>::Index;

  // Interleaved groups whose minima bound the k nearest: at least 2k, so that about 1.4k points lie within.
  static int64_t groups_for(int64_t k) { return std::max<int64_t>(64, (2 * k + kLanes - 1) / kLanes * kLanes); }

  Workspace(int64_t k, int64_t N)
      : num_groups(groups_for(k)),
        first_tile(std::min(N, std::max(kTile, num_groups))),
        shrink_above(2 * k + 2 * kLanes),
        capacity(std::max(first_tile, shrink_above + std::min(N, kTile)) + 2 * kLanes),
        tile(std::max(first_tile, kTile) + kLanes),
        minima(num_groups),
        hits(std::max(first_tile, kTile) + kLanes),
        sq_dist(capacity),
        index(capacity),
        num_nearer(capacity),
        num_tied(capacity),
        keys(capacity) {}

  const int64_t num_groups, first_tile, shrink_above, capacity;
  Scratch<isa, T> tile, minima;    // distances of a tile; the groups' minima
  Scratch<isa, Index> hits;        // vectors of the tile that hold a candidate
  Scratch<isa, T> sq_dist;         // of the candidates
  Scratch<isa, Index> index;       // of the candidates, ascending
  Scratch<isa, Index> num_nearer;  // per candidate
  Scratch<isa, int32_t> num_tied;  // per rank
  Scratch<isa, Key<isa, T>> keys;
  int64_t num = 0;  // candidates
};

template <Isa isa, typename T>
typename Simd<isa, T>::Vector distances(const Coordinates<isa, T>& cloud, int64_t i, const T* query) {
  using S = Simd<isa, T>;
  return sq_distance<isa>(S::load(cloud.x + i), S::load(cloud.y + i), S::load(cloud.z + i), S::broadcast(query[0]),
                          S::broadcast(query[1]), S::broadcast(query[2]));
}

// Distances to the first `count` points of the cloud; returns a limit that at least k of them are within: each of
// num_groups >= k interleaved groups has a minimum, and k of these are.
template <Isa isa, typename T>
T first_tile(Workspace<isa, T>& work, const Coordinates<isa, T>& cloud, int64_t count, const T* query, int64_t k) {
  using S = Simd<isa, T>;
  T *tile = work.tile.get(), *minima = work.minima.get();
  for (int64_t g = 0; g < work.num_groups; ++g) minima[g] = std::numeric_limits<T>::infinity();
  for (int64_t row = 0; row < count; row += work.num_groups) {
    for (int64_t i = row; i < std::min(row + work.num_groups, count); i += S::kLanes) {
      const auto d = distances(cloud, i, query);
      const auto minimum = S::load(minima + i - row);
      S::store(tile + i, d);
      S::store(minima + i - row, d < minimum ? d : minimum);
    }
  }
  return limit_of<isa>(minima, work.num_groups, k);
}

// Points begin..end-1 that lie within `limit` become candidates. `distances_at(i)` are those of the vector at i, which
// afterwards lie in the tile. Vectors with a candidate are listed first, without a branch that would be guessed wrong.
template <Isa isa, typename T, typename Distances>
void append_within(Workspace<isa, T>& work, int64_t begin, int64_t end, T limit, Distances&& distances_at) {
  using S = Simd<isa, T>;
  using Index = typename S::Index;
  const auto limits = S::broadcast(limit);
  Index* hits = work.hits.get();
  int64_t num_hits = 0;
  for (int64_t i = begin; i < end; i += S::kLanes) {
    hits[num_hits] = static_cast<Index>(i);
    num_hits += S::at_most(distances_at(i), limits) != 0 ? 1 : 0;
  }
  const auto ascending = S::ascending();
  int64_t num = work.num;
  for (int64_t hit = 0; hit < num_hits; ++hit) {
    const Index i = hits[hit];
    const auto d = S::load(work.tile.get() + (i - begin));
    num += S::compress(S::at_most(d, limits), d, S::broadcast_index(i) + ascending, work.sq_dist.get() + num,
                       work.index.get() + num);
  }
  work.num = num;
}

// Drops candidates until about k are left, exactly k if ties allow no less; returns the limit that later points must
// be strictly below: among equals the lower index wins, and k candidates are within it.
template <Isa isa, typename T>
T shrink(Workspace<isa, T>& work, int64_t k) {
  T limit = limit_of<isa>(work.sq_dist.get(), work.num, k);
  auto last_index = std::numeric_limits<typename Simd<isa, T>::Index>::max();  // that may be kept at the limit
  if (count_within<isa>(work.sq_dist.get(), work.num, limit) > work.shrink_above / 2 + k / 2) {
    for (int64_t i = 0; i < work.num; ++i) work.keys[i] = {work.sq_dist[i], work.index[i]};
    std::nth_element(work.keys.get(), work.keys.get() + (k - 1), work.keys.get() + work.num);
    limit = work.keys[k - 1].sq_dist;
    last_index = work.keys[k - 1].index;
  }
  int64_t kept = 0;
  for (int64_t i = 0; i < work.num; ++i) {
    const T d = work.sq_dist[i];
    const auto index = work.index[i];
    work.sq_dist[kept] = d;
    work.index[kept] = index;
    kept += d < limit || (d == limit && index <= last_index) ? 1 : 0;
  }
  work.num = kept;
  return limit;
}

// The k nearest candidates, in order. A candidate's rank is the number of nearer ones and of equals before it.
template <Isa isa, typename T>
void rank(Workspace<isa, T>& work, int64_t k, T* sq_dists, int64_t* indices) {
  const int64_t num = work.num;
  for (int64_t i = 0; i < num; ++i) work.num_tied[i] = 0;
  using S = Simd<isa, T>;
  const T* candidates = work.sq_dist.get();
  for (int64_t i = 0; i < num; i += S::kLanes) {
    const auto d = S::load(candidates + i);
    auto nearer = S::broadcast_index(0);
    for (int64_t j = 0; j < num; ++j)
      nearer += S::broadcast(candidates[j]) < d ? S::broadcast_index(1) : S::broadcast_index(0);
    S::store_index(work.num_nearer.get() + i, nearer);
  }
  for (int64_t i = 0; i < num; ++i) {
    const int64_t nearer = work.num_nearer[i];
    const int64_t place = nearer + work.num_tied[nearer]++;
    if (place < k) {
      sq_dists[place] = candidates[i];
      indices[place] = work.index[i];
    }
  }
}

template <Isa isa, typename T>
void sort(Workspace<isa, T>& work, int64_t k, T* sq_dists, int64_t* indices) {
  Key<isa, T>* keys = work.keys.get();
  for (int64_t i = 0; i < work.num; ++i) keys[i] = {work.sq_dist[i], work.index[i]};
  if (k < work.num) std::nth_element(keys, keys + k, keys + work.num);
  std::sort(keys, keys + k);
  for (int64_t i = 0; i < k; ++i) {
    sq_dists[i] = keys[i].sq_dist;
    indices[i] = keys[i].index;
  }
}

template <Isa isa, typename T>
void search(Workspace<isa, T>& work, const T* query, const Coordinates<isa, T>& cloud, int64_t N, int64_t k,
            T* sq_dists, int64_t* indices) {
  const int64_t first = std::min(work.first_tile, N);
  T limit = first_tile(work, cloud, first, query, k);
  work.num = 0;
  append_within(work, 0, first, limit, [&](int64_t i) { return Simd<isa, T>::load(work.tile.get() + i); });
  for (int64_t begin = first; begin < N; begin += kTile) {
    if (work.num > work.shrink_above) limit = shrink(work, k);
    const T below = std::nextafter(limit, -std::numeric_limits<T>::infinity());
    append_within(work, begin, std::min(begin + kTile, N), below, [&](int64_t i) {
      const auto d = distances(cloud, i, query);
      Simd<isa, T>::store(work.tile.get() + (i - begin), d);
      return d;
    });
  }
  if (work.num > kRankLimit) {
    sort(work, k, sq_dists, indices);
  } else {
    rank(work, k, sq_dists, indices);
  }
}

}  // namespace

template <Isa isa, typename T>
void knn_cpu(const T* queries, const T* points, const int64_t* lengths, T* sq_dists, int64_t* indices, int64_t B,
             int64_t M, int64_t N, int64_t k, int num_threads) {
  const int64_t size = Coordinates<isa, T>::size_for(N);
  Scratch<isa, T> memory(B * size);
  T* clouds = memory.get();
  parallel_for(B, (B + num_threads - 1) / num_threads, num_threads, [=](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      Coordinates<isa, T>(clouds + b * size, N).fill(points + b * N * 3, lengths ? lengths[b] : N);
    }
  });
  const int64_t grain = std::max<int64_t>(1, B * M / (8 * num_threads));
  parallel_for(B * M, grain, num_threads, [=](int64_t begin, int64_t end) {
    Workspace<isa, T> work(k, N);
    for (int64_t q = begin; q < end; ++q) {
      const int64_t b = q / M;
      search(work, queries + q * 3, Coordinates<isa, T>(clouds + b * size, N), lengths ? lengths[b] : N, k,
             sq_dists + q * k, indices + q * k);
    }
  });
}

template <Isa isa, typename T>
void knn_backward_cpu(const T* grad_sq_dists, const T* queries, const T* points, const int64_t* indices,
                      T* grad_queries, T* grad_points, int64_t B, int64_t M, int64_t N, int64_t k, int num_threads) {
  parallel_for(B, 1, num_threads, [=](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const T* cloud = points + b * N * 3;
      T* grad_cloud = grad_points + b * N * 3;
      std::fill(grad_cloud, grad_cloud + N * 3, T(0));
      for (int64_t q = b * M; q < (b + 1) * M; ++q) {
        T sum[3] = {0, 0, 0};
        for (int64_t j = q * k; j < (q + 1) * k; ++j) {
          const int64_t p = indices[j] * 3;
          for (int c = 0; c < 3; ++c) {
            const T grad = 2 * grad_sq_dists[j] * (queries[q * 3 + c] - cloud[p + c]);
            sum[c] += grad;
            grad_cloud[p + c] -= grad;
          }
        }
        for (int c = 0; c < 3; ++c) grad_queries[q * 3 + c] = sum[c];
      }
    }
  });
}

template void knn_cpu<kIsa, float>(const float*, const float*, const int64_t*, float*, int64_t*, int64_t, int64_t,
                                   int64_t, int64_t, int);
template void knn_cpu<kIsa, double>(const double*, const double*, const int64_t*, double*, int64_t*, int64_t, int64_t,
                                    int64_t, int64_t, int);
template void knn_backward_cpu<kIsa, float>(const float*, const float*, const float*, const int64_t*, float*, float*,
                                            int64_t, int64_t, int64_t, int64_t, int);
template void knn_backward_cpu<kIsa, double>(const double*, const double*, const double*, const int64_t*, double*,
                                             double*, int64_t, int64_t, int64_t, int64_t, int);

}  // namespace jointmae
