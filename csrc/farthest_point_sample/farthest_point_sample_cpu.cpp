// One thread per cloud.
#include <algorithm>
#include <limits>

#include "common/coordinates.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "farthest_point_sample/farthest_point_sample.h"

namespace jointmae {
namespace {

constexpr int64_t kBlock = 256;  // points per block: one maximum each, so that the arg-max search reads one block

// Lowers the distance of each point of one block to the new sample's; returns the block's maximum.
template <Isa isa, typename T>
T update_block(const T* __restrict__ x, const T* __restrict__ y, const T* __restrict__ z, T* __restrict__ sq_dist, T px,
               T py, T pz, int64_t count) {
  T block_max = 0;
#pragma omp simd reduction(max : block_max)
  for (int64_t i = 0; i < count; ++i) {
    const T d = sq_distance<isa>(x[i], y[i], z[i], px, py, pz);
    const T nearest = d < sq_dist[i] ? d : sq_dist[i];
    sq_dist[i] = nearest;
    block_max = nearest > block_max ? nearest : block_max;
  }
  return block_max;
}

template <Isa isa, typename T>
void sample_cloud(const T* points, int64_t* indices, int64_t N, int64_t M, int64_t start) {
  const int64_t num_blocks = (N + kBlock - 1) / kBlock;
  Scratch<isa, T> memory(Coordinates<isa, T>::size_for(N)), sq_dist(N), block_max(num_blocks);
  Coordinates<isa, T> cloud(memory.get(), N);
  cloud.fill(points, N);
  const T *x = cloud.x, *y = cloud.y, *z = cloud.z;
  std::fill(sq_dist.get(), sq_dist.get() + N, std::numeric_limits<T>::infinity());
  int64_t last = start;
  indices[0] = start;
  for (int64_t m = 1; m < M; ++m) {
    const T px = x[last], py = y[last], pz = z[last];
    int64_t best = 0;
    for (int64_t block = 0; block < num_blocks; ++block) {
      const int64_t begin = block * kBlock, count = std::min(kBlock, N - begin);
      block_max[block] = update_block<isa>(x + begin, y + begin, z + begin, sq_dist.get() + begin, px, py, pz, count);
      if (block_max[block] > block_max[best]) best = block;  // strictly: the first block of the maximum stays
    }
    last = best * kBlock;
    while (sq_dist[last] != block_max[best]) ++last;
    indices[m] = last;
  }
}

}  // namespace

template <Isa isa, typename T>
void farthest_point_sample_cpu(const T* points, const int64_t* lengths, int64_t* indices, int64_t B, int64_t N,
                               int64_t M, int64_t start, int num_threads) {
  parallel_for(B, 1, num_threads, [=](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      sample_cloud<isa>(points + b * N * 3, indices + b * M, lengths ? lengths[b] : N, M, start);
    }
  });
}

template void farthest_point_sample_cpu<kIsa, float>(const float*, const int64_t*, int64_t*, int64_t, int64_t, int64_t,
                                                     int64_t, int);
template void farthest_point_sample_cpu<kIsa, double>(const double*, const int64_t*, int64_t*, int64_t, int64_t,
                                                      int64_t, int64_t, int);

}  // namespace jointmae
