// Gathering rows of features. B clouds, N points, C channels, R = G * k rows gathered per cloud.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/stream.h"

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

// As group_cpu, but nothing looks at the indices first: a row whose index is outside of 0..N-1 is filled with bytes
// 0xFF, which are NaN in every floating-point type.
void group_cuda(const void* features, const int64_t* indices, void* out,  // as above
                int64_t B, int64_t N, int64_t R, int64_t row_bytes, const Stream& stream);

// What the numbers of a gradient are; sums are float64 for float64, else float32.
enum class GradType { float16, bfloat16, float32, float64 };

// As group_backward_cpu, with the same bits. A row whose index is outside of 0..N-1 counts nowhere.
void group_backward_cuda(const void* grad,        // [B, R, C] of `type`
                         const int64_t* indices,  // [B, R], R < 2^31, N < 2^31
                         int32_t* workspace,      // inverse_index_size(B, R, N)
                         void* grad_features,     // [B, N, C], of the sums' type
                         int64_t B, int64_t N, int64_t R, int64_t C, GradType type, const Stream& stream);

}  // namespace jointmae
