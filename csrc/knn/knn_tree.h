// The way of `knn_cuda` for clouds of many points; chosen in knn_cuda.cu.
#pragma once

#include <cstdint>

#include "common/stream.h"

namespace jointmae {

int64_t knn_tree_workspace(int64_t B, int64_t M, int64_t N);  // in bytes

// As knn_cuda, for k <= 64.
void knn_tree_cuda(const float* queries, const float* points, const int64_t* lengths, void* workspace, float* sq_dists,
                   int64_t* indices, int64_t B, int64_t M, int64_t N, int64_t k, const Stream& stream);

}  // namespace jointmae
