// One thread per range of queries. Per query, tile by tile: all distances, then only the few points within a limit that
// the k nearest cannot exceed are kept as candidates, in the order of their indices; in the end these are ranked.
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "common/coordinates.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "knn/knn.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace jointmae {
namespace {

constexpr int64_t kTile = 4096;      // points whose distances lie in the first-level cache
constexpr int64_t kLanes = 16;       // buffers have room for, and are padded to, whole vectors
constexpr int64_t kRankLimit = 512;  // more candidates than this are sorted, fewer are ranked by counting

template <Isa isa, typename T>
struct Key {
  T sq_dist;
  int32_t index;
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
  // Interleaved groups whose minima bound the k nearest: at least 2k, so that about 1.4k points lie within.
  static int64_t groups_for(int64_t k) { return std::max<int64_t>(64, (2 * k + kLanes - 1) / kLanes * kLanes); }

  Workspace(int64_t k, int64_t N)
      : num_groups(groups_for(k)),
        first_tile(std::min(N, std::max(kTile, num_groups))),
        shrink_above(2 * k + 2 * kLanes),
        capacity(std::max(first_tile, shrink_above + std::min(N, kTile)) + 2 * kLanes),
        tile(std::max(first_tile, kTile)),
        minima(num_groups),
        sq_dist(capacity),
        index(capacity),
        num_nearer(capacity),
        num_tied(capacity),
        keys(capacity) {}

  const int64_t num_groups, first_tile, shrink_above, capacity;
  Scratch<isa, T> tile, minima;  // distances of a tile; the groups' minima
  Scratch<isa, T> sq_dist;       // of the candidates
  Scratch<isa, int32_t> index;   // of the candidates, ascending
  Scratch<isa, typename Simd<isa, T>::Index> num_nearer;
  Scratch<isa, int32_t> num_tied;  // per rank
  Scratch<isa, Key<isa, T>> keys;
  int64_t num = 0;  // candidates
};

// Candidates = candidates + those of `count` points, the first of which is `first_index`, within `limit`.
template <Isa isa, typename T>
void append_within(Workspace<isa, T>& work, const T* sq_dist, int64_t count, T limit, int32_t first_index) {
  T* to_sq_dist = work.sq_dist.get();
  int32_t* to_index = work.index.get();
  int64_t num = work.num;
  int64_t i = 0;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    const __m512 limits = _mm512_set1_ps(limit);
    __m512i index = _mm512_add_epi32(_mm512_set1_epi32(first_index),
                                     _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    for (; i + kLanes <= count; i += kLanes, index = _mm512_add_epi32(index, _mm512_set1_epi32(kLanes))) {
      const __m512 d = _mm512_loadu_ps(sq_dist + i);
      const __mmask16 within = _mm512_cmp_ps_mask(d, limits, _CMP_LE_OQ);
      if (within == 0) continue;
      _mm512_storeu_ps(to_sq_dist + num, _mm512_maskz_compress_ps(within, d));
      _mm512_storeu_si512(to_index + num, _mm512_maskz_compress_epi32(within, index));
      num += __builtin_popcount(within);
    }
  }
#endif
  for (; i < count; i += kLanes) {
    const int64_t end = std::min(i + kLanes, count);
    if (count_within<isa>(sq_dist + i, end - i, limit) == 0) continue;
    for (int64_t j = i; j < end; ++j) {
      to_sq_dist[num] = sq_dist[j];
      to_index[num] = first_index + static_cast<int32_t>(j);
      num += sq_dist[j] <= limit ? 1 : 0;
    }
  }
  work.num = num;
}

// Drops candidates until about k are left, exactly k if ties allow no less; returns the limit that later points must
// be strictly below: among equals the lower index wins, and k candidates are within it.
template <Isa isa, typename T>
T shrink(Workspace<isa, T>& work, int64_t k) {
  T limit = limit_of<isa>(work.sq_dist.get(), work.num, k);
  int32_t last_index = std::numeric_limits<int32_t>::max();  // that may be kept at the limit
  if (count_within<isa>(work.sq_dist.get(), work.num, limit) > work.shrink_above / 2 + k / 2) {
    for (int64_t i = 0; i < work.num; ++i) work.keys[i] = {work.sq_dist[i], work.index[i]};
    std::nth_element(work.keys.get(), work.keys.get() + (k - 1), work.keys.get() + work.num);
    limit = work.keys[k - 1].sq_dist;
    last_index = work.keys[k - 1].index;
  }
  int64_t kept = 0;
  for (int64_t i = 0; i < work.num; ++i) {
    const T d = work.sq_dist[i];
    const int32_t index = work.index[i];
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
void distances_to(const T* __restrict__ x, const T* __restrict__ y, const T* __restrict__ z, const T* query,
                  T* __restrict__ sq_dist, int64_t count) {
  const T qx = query[0], qy = query[1], qz = query[2];
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) sq_dist[i] = sq_distance<isa>(x[i], y[i], z[i], qx, qy, qz);
}

// A limit that at least k of the tile are within: at least k groups have their minimum within it.
template <Isa isa, typename T>
T first_limit(Workspace<isa, T>& work, int64_t count, int64_t k) {
  const int64_t num_groups = work.num_groups;
  if (count < num_groups) return std::numeric_limits<T>::infinity();
  const T* __restrict__ tile = work.tile.get();
  T* __restrict__ minima = work.minima.get();
  for (int64_t g = 0; g < num_groups; ++g) minima[g] = tile[g];
  for (int64_t row = num_groups; row + num_groups <= count; row += num_groups) {  // the rest could only lower it
#pragma omp simd
    for (int64_t g = 0; g < num_groups; ++g) minima[g] = tile[row + g] < minima[g] ? tile[row + g] : minima[g];
  }
  return limit_of<isa>(minima, num_groups, k);
}

template <Isa isa, typename T>
void search(Workspace<isa, T>& work, const T* query, const T* coordinates, int64_t stride, int64_t N, int64_t k,
            T* sq_dists, int64_t* indices) {
  const T *x = coordinates, *y = x + stride, *z = y + stride;
  const int64_t first = std::min(work.first_tile, N);
  distances_to<isa>(x, y, z, query, work.tile.get(), first);
  T limit = first_limit(work, first, k);
  work.num = 0;
  append_within(work, work.tile.get(), first, limit, 0);
  for (int64_t begin = first; begin < N; begin += kTile) {
    if (work.num > work.shrink_above) limit = shrink(work, k);
    const int64_t count = std::min(kTile, N - begin);
    distances_to<isa>(x + begin, y + begin, z + begin, query, work.tile.get(), count);
    const T below = std::nextafter(limit, -std::numeric_limits<T>::infinity());
    append_within(work, work.tile.get(), count, below, static_cast<int32_t>(begin));
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
  Scratch<isa, T> coordinates(B * 3 * N);
  T* split = coordinates.get();
  parallel_for(B, (B + num_threads - 1) / num_threads, num_threads, [=](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) split_coordinates<isa>(points + b * N * 3, split + b * 3 * N, N);
  });
  const int64_t grain = std::max<int64_t>(1, B * M / (8 * num_threads));
  parallel_for(B * M, grain, num_threads, [=](int64_t begin, int64_t end) {
    Workspace<isa, T> work(k, N);
    for (int64_t q = begin; q < end; ++q) {
      const int64_t b = q / M;
      search(work, queries + q * 3, split + b * 3 * N, N, lengths ? lengths[b] : N, k, sq_dists + q * k,
             indices + q * k);
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
