// Farthest point sampling: greedy and exact. B clouds, N points, M samples.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/stream.h"

namespace jointmae {

// How the CPU kernel goes about it; `by_size` chooses, the others are for tests.
enum class SamplingPath { by_size = 0, flat = 1, boxes = 2 };

// indices[b, 0] = start; indices[b, m] = the point of cloud b farthest (squared Euclidean) from the samples before it,
// ties to the lowest index. A squared distance is (dx*dx + dy*dy) + dz*dz, each operation rounded. Only the first
// lengths[b] points of cloud b count (all N where lengths is null). T is float or double.
template <Isa isa, typename T>
void farthest_point_sample_cpu(const T* points,         // [B, N, 3], finite
                               const int64_t* lengths,  // [B] or null, in 1..N
                               int64_t* indices,        // [B, M]
                               int64_t B, int64_t N, int64_t M, int64_t start, SamplingPath path, int num_threads);

// The same on a GPU, for any values: a point that is not finite is sampled when nothing else is left (or as the start),
// a start beyond a length is its last point, lengths are cut to 1..N. `path` is how: 0 chooses; for tests, 1 is a block
// per cloud (N <= 8192), 2 a cluster of blocks (N as fits), 3 the grid.
void farthest_point_sample_cuda(const float* points,     // [B, N, 3]
                                const int64_t* lengths,  // [B] or null
                                int64_t* indices,        // [B, M]
                                void* workspace,         // aligned to 16 bytes
                                int64_t B, int64_t N, int64_t M, int64_t start, int path, const Stream& stream);

// Bytes.
int64_t farthest_point_sample_workspace_cuda(int64_t N, int path);

}  // namespace jointmae
