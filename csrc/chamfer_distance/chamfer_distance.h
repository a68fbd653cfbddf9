// Nearest points of two clouds in each other, both ways in one pass; exact. B pairs of clouds of N and M points.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace jointmae {

// d_xy[b, i] = the squared distance (dx*dx + dy*dy) + dz*dz, each operation rounded, from x[b, i] to the nearest point
// of y[b], which is index_xy[b, i], ties to the lowest index; d_yx, index_yx the other way. Only the first lengths_x[b]
// and lengths_y[b] points count (all where null); the rest get distance 0 and index 0. T is float or double.
template <Isa isa, typename T>
void chamfer_distance_cpu(const T* x,                // [B, N, 3], finite, N < 2^31
                          const T* y,                // [B, M, 3], finite, M < 2^31
                          const int64_t* lengths_x,  // [B] or null, in 1..N
                          const int64_t* lengths_y,  // [B] or null, in 1..M
                          T* d_xy, T* d_yx,          // [B, N], [B, M]
                          int64_t* index_xy,         // [B, N]
                          int64_t* index_yx,         // [B, M]
                          int64_t B, int64_t N, int64_t M, int num_threads);

// The gradient of sum(grad_d_xy * d_xy) + sum(grad_d_yx * d_yx). One thread per pair of clouds, in the order of the
// points: the same bits for every number of threads.
template <Isa isa, typename T>
void chamfer_distance_backward_cpu(const T* grad_d_xy, const T* grad_d_yx,              // [B, N], [B, M]
                                   const T* x, const T* y,                              // [B, N, 3], [B, M, 3]
                                   const int64_t* lengths_x, const int64_t* lengths_y,  // [B] or null
                                   const int64_t* index_xy, const int64_t* index_yx,    // [B, N], [B, M]
                                   T* grad_x, T* grad_y,                                // [B, N, 3], [B, M, 3]
                                   int64_t B, int64_t N, int64_t M, int num_threads);

}  // namespace jointmae
