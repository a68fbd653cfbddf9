// Farthest point sampling: greedy and exact. B clouds, N points, M samples.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace jointmae {

// indices[b, 0] = start; indices[b, m] = the point of cloud b farthest (squared Euclidean) from the samples before it,
// ties to the lowest index. A squared distance is (dx*dx + dy*dy) + dz*dz, each operation rounded. Only the first
// lengths[b] points of cloud b count (all N where lengths is null). T is float or double.
template <Isa isa, typename T>
void farthest_point_sample_cpu(const T* points,         // [B, N, 3], finite
                               const int64_t* lengths,  // [B] or null, in 1..N
                               int64_t* indices,        // [B, M]
                               int64_t B, int64_t N, int64_t M, int64_t start, int num_threads);

}  // namespace jointmae
