// Gathering rows of features. B clouds, N points, C channels, R = G * k rows gathered per cloud.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace jointmae {

// out[b, r] = features[b, indices[b, r]], any dtype: a row is `row_bytes` bytes. Throws std::invalid_argument, with a
// message for the user, for an index outside of 0..N-1: looking here costs nothing beside the gather, in Python it
// would.
template <Isa isa>
void group_cpu(const void* features,    // [B, N] rows
               const int64_t* indices,  // [B, R]
               void* out,               // [B, R] rows
               int64_t B, int64_t N, int64_t R, int64_t row_bytes, int num_threads);

// grad_features[b, n] = the sum of grad[b, r] over the rows r with indices[b, r] = n, in the order of r: the same bits
// for every number of threads. Throws like group_cpu.
template <Isa isa, typename T>
void group_backward_cpu(const T* grad,           // [B, R, C]
                        const int64_t* indices,  // [B, R]
                        T* grad_features,        // [B, N, C]
                        int64_t B, int64_t N, int64_t R, int64_t C, int num_threads);

}  // namespace jointmae
