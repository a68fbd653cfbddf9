// k nearest neighbours, exact. B clouds, N points, M queries, k neighbours.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/stream.h"

namespace jointmae {

// The k points of cloud b nearest to query m: squared distances (dx*dx + dy*dy) + dz*dz, each operation rounded, and
// indices; nearest first, ties to the lowest index. Only the first lengths[b] points of cloud b count (all N where
// lengths is null). `path` is 0 to choose by size, else forced, for tests: 1 all points for each query, 2 boxes, 3 a
// query a lane (for k up to 4, else as 1). T is float or double.
template <Isa isa, typename T>
void knn_cpu(const T* queries,        // [B, M, 3], finite
             const T* points,         // [B, N, 3], finite, N < 2^31
             const int64_t* lengths,  // [B] or null, in k..N
             T* sq_dists,             // [B, M, k]
             int64_t* indices,        // [B, M, k]
             int64_t B, int64_t M, int64_t N, int64_t k, int path, int num_threads);

// The gradient of sum(grad_sq_dists * sq_dists), added up in the order of the queries: the same bits for every number
// of threads.
template <Isa isa, typename T>
void knn_backward_cpu(const T* grad_sq_dists,  // [B, M, k]
                      const T* queries,        // [B, M, 3]
                      const T* points,         // [B, N, 3]
                      const int64_t* indices,  // [B, M, k], in 0..N-1
                      T* grad_queries,         // [B, M, 3]
                      T* grad_points,          // [B, N, 3]
                      int64_t B, int64_t M, int64_t N, int64_t k, int num_threads);

// The same bits as knn_cpu for finite input, enqueued. Other values give no index out of range: a distance that is NaN
// is farther than infinity; where a length is below k, what is missing is infinitely far. `path` 0 chooses by size; 1
// (a warp per query), 2 (a block per query), 3 (a tree over the points) are for tests; above k = 64 it is always 2.
void knn_cuda(const float* queries,    // [B, M, 3]
              const float* points,     // [B, N, 3], N < 2^31
              const int64_t* lengths,  // [B] or null
              void* workspace,         // knn_workspace_cuda bytes, at a multiple of 16
              float* sq_dists,         // [B, M, k]
              int64_t* indices,        // [B, M, k]
              int64_t B, int64_t M, int64_t N, int64_t k, int path, const Stream& stream);
int64_t knn_workspace_cuda(int64_t B, int64_t M, int64_t N, int64_t k, int path);

// The same bits as knn_backward_cpu, enqueued. A neighbour whose index is out of range counts for nothing.
void knn_backward_cuda(const float* grad_sq_dists,  // [B, M, k], M k < 2^31
                       const float* queries,        // [B, M, 3]
                       const float* points,         // [B, N, 3]
                       const int64_t* indices,      // [B, M, k]
                       int32_t* workspace,          // [inverse_index_size(B, M k, N)]
                       float* grad_queries,         // [B, M, 3]
                       float* grad_points,          // [B, N, 3]
                       int64_t B, int64_t M, int64_t N, int64_t k, const Stream& stream);

}  // namespace jointmae
