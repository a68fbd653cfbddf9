// The gradient of the distances. A cloud is one thread's, or, where there are far fewer clouds than threads, first each
// range of queries, then each range of points is: sums have the same order either way.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/isa.h"
#include "common/parallel.h"
#include "common/scratch.h"

namespace jointmae::knn {

template <Isa isa, typename T>
struct Backward {
  const T* grad_sq_dists;  // [B, M, k]
  const T* queries;        // [B, M, 3]
  const T* points;         // [B, N, 3]
  const int64_t* indices;  // [B, M, k]
  T* grad_queries;         // [B, M, 3]
  T* grad_points;          // [B, N, 3]
  int64_t B, M, N, k;

  void run(int num_threads) const {
    if (2 * B >= num_threads) {  // in parts the work is twice as much
      parallel_for(B, 1, num_threads, [this](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) whole_cloud(b);
      });
    } else if (B > 0) {
      const int64_t num_ranges = (num_threads + B - 1) / B;  // of the points of a cloud
      parallel_for(B * M, B * M / (4 * num_threads), num_threads, [this](int64_t begin, int64_t end) {
        for (int64_t q = begin; q < end; ++q) gather(q);
      });
      parallel_for(B * num_ranges, 1, num_threads, [this, num_ranges](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t range = task % num_ranges;
          scatter(task / num_ranges, N * range / num_ranges, N * (range + 1) / num_ranges);
        }
      });
    }
  }

 private:
  static constexpr int64_t kBlock = 1024;  // neighbours

  struct Neighbor {
    int64_t q, j;
  };

  // Of coordinate c of query q, by its neighbour j.
  T grad(const T* cloud, int64_t q, int64_t j, int c) const {
    return 2 * grad_sq_dists[j] * (queries[q * 3 + c] - cloud[indices[j] * 3 + c]);
  }

  void whole_cloud(int64_t b) const {
    T* grad_cloud = grad_points + b * N * 3;
    std::fill(grad_cloud, grad_cloud + N * 3, T(0));
    for (int64_t q = b * M; q < (b + 1) * M; ++q) {
      T sum[3] = {0, 0, 0};
      for (int64_t j = q * k; j < (q + 1) * k; ++j) {
        for (int c = 0; c < 3; ++c) {
          const T by_neighbor = grad(points + b * N * 3, q, j, c);
          sum[c] += by_neighbor;
          grad_cloud[indices[j] * 3 + c] -= by_neighbor;
        }
      }
      for (int c = 0; c < 3; ++c) grad_queries[q * 3 + c] = sum[c];
    }
  }

  void gather(int64_t q) const {
    const T* cloud = points + q / M * N * 3;
    T sum[3] = {0, 0, 0};
    for (int64_t j = q * k; j < (q + 1) * k; ++j) {
      for (int c = 0; c < 3; ++c) sum[c] += grad(cloud, q, j, c);
    }
    for (int c = 0; c < 3; ++c) grad_queries[q * 3 + c] = sum[c];
  }

  // To the points begin..end-1 of cloud b. Neighbours among them are listed first: a branch would be guessed wrong.
  void scatter(int64_t b, int64_t begin, int64_t end) const {
    T* grad_cloud = grad_points + b * N * 3;
    std::fill(grad_cloud + begin * 3, grad_cloud + end * 3, T(0));
    const int64_t block = std::clamp<int64_t>(kBlock / std::max<int64_t>(k, 1), 1, M);  // queries
    Scratch<isa, Neighbor> listed(block * k);
    for (int64_t first = b * M; first < (b + 1) * M; first += block) {
      int64_t num_listed = 0;
      for (int64_t q = first; q < std::min(first + block, (b + 1) * M); ++q) {
        for (int64_t j = q * k; j < (q + 1) * k; ++j) {
          listed[num_listed] = {q, j};
          num_listed += indices[j] >= begin && indices[j] < end ? 1 : 0;
        }
      }
      for (int64_t i = 0; i < num_listed; ++i) {
        const Neighbor of = listed[i];
        for (int c = 0; c < 3; ++c) grad_cloud[indices[of.j] * 3 + c] -= grad(points + b * N * 3, of.q, of.j, c);
      }
    }
  }
};

}  // namespace jointmae::knn
