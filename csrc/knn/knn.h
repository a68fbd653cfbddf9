// k nearest neighbours by brute force, exact. B clouds, N points, M queries, k neighbours.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace jointmae {

// The k points of cloud b nearest to query m: squared distances (dx*dx + dy*dy) + dz*dz, each operation rounded, and
// indices; nearest first, ties to the lowest index. Only the first lengths[b] points of cloud b count (all N where
// lengths is null). T is float or double.
template <Isa isa, typename T>
void knn_cpu(const T* queries,        // [B, M, 3], finite
             const T* points,         // [B, N, 3], finite, N < 2^31
             const int64_t* lengths,  // [B] or null, in k..N
             T* sq_dists,             // [B, M, k]
             int64_t* indices,        // [B, M, k]
             int64_t B, int64_t M, int64_t N, int64_t k, int num_threads);

// The gradient of sum(grad_sq_dists * sq_dists). One thread per cloud, in the order of the queries: the same bits for
// every number of threads.
template <Isa isa, typename T>
void knn_backward_cpu(const T* grad_sq_dists,  // [B, M, k]
                      const T* queries,        // [B, M, 3]
                      const T* points,         // [B, N, 3]
                      const int64_t* indices,  // [B, M, k], in 0..N-1
                      T* grad_queries,         // [B, M, 3]
                      T* grad_points,          // [B, N, 3]
                      int64_t B, int64_t M, int64_t N, int64_t k, int num_threads);

}  // namespace jointmae
