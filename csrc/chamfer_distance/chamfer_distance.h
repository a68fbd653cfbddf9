// Nearest points of two clouds in each other, both ways in one pass; exact. B pairs of clouds of N and M points.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/stream.h"

namespace jointmae {

// How the forward pass on the CPU goes: as suits the size, or one way in any case (csrc/chamfer_distance/<way>.h).
enum class ChamferCpuPath { by_size, many_pairs, brute, boxes };

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
                          int64_t B, int64_t N, int64_t M, ChamferCpuPath path, int num_threads);

// The gradient of sum(grad_d_xy * d_xy) + sum(grad_d_yx * d_yx), added up in a fixed order: the same bits for every
// number of threads. `step` is how far two numbers of a grad_d lie apart: 1, or 0 where there is only one, for all.
template <Isa isa, typename T>
void chamfer_distance_backward_cpu(const T* grad_d_xy, const T* grad_d_yx,              // [B, N], [B, M]
                                   int64_t step_xy, int64_t step_yx,                    // 0 or 1
                                   const T* x, const T* y,                              // [B, N, 3], [B, M, 3]
                                   const int64_t* lengths_x, const int64_t* lengths_y,  // [B] or null
                                   const int64_t* index_xy, const int64_t* index_yx,    // [B, N], [B, M]
                                   T* grad_x, T* grad_y,                                // [B, N, 3], [B, M, 3]
                                   int64_t B, int64_t N, int64_t M, int num_threads);

// Which kernels run: those for tiny sets where they can, or those for large clouds in any case.
enum class ChamferPath { by_size, large };

// How many 64-bit keys the forward pass needs, with all bits set.
int64_t chamfer_distance_keys(int64_t B, int64_t N, int64_t M, ChamferPath path);

// As chamfer_distance_cpu, but coordinates may be anything: a point that is not finite may get any index of a point
// that counts, and is nobody's nearest where another one is at less than infinity. Lengths are cut to 1..N, 1..M.
void chamfer_distance_cuda(const float* x, const float* y, const int64_t* lengths_x, const int64_t* lengths_y,
                           float* d_xy, float* d_yx, int64_t* index_xy, int64_t* index_yx,  // as above
                           unsigned long long* keys, int64_t B, int64_t N, int64_t M, ChamferPath path,
                           const Stream& stream);

// How many int32 of workspace the backward pass needs.
int64_t chamfer_distance_backward_workspace(int64_t B, int64_t N, int64_t M, ChamferPath path);

// As chamfer_distance_backward_cpu, with the same bits. An index out of range counts nowhere.
void chamfer_distance_backward_cuda(const float* grad_d_xy, const float* grad_d_yx, const float* x, const float* y,
                                    const int64_t* lengths_x, const int64_t* lengths_y, const int64_t* index_xy,
                                    const int64_t* index_yx, float* grad_x, float* grad_y,  // as above
                                    int32_t* workspace, int64_t B, int64_t N, int64_t M, ChamferPath path,
                                    const Stream& stream);

}  // namespace jointmae
