// Three ways, all exact and with the same result, and the choice between them:
//   warp   k <= 64: a warp per query, the 8 of a block share tiles of the cloud in shared memory
//   block  any k: a block per query finds the k-th nearest key by its digits, collects what is not farther, sorts it
//   tree   k <= 64 and many points: knn_tree_cuda.cu
#include <algorithm>

#include "common/cuda.h"
#include "common/inverse_index.h"
#include "knn/knn.h"
#include "knn/knn_tree.h"
#include "knn/nearest.h"

namespace jointmae {
namespace {

constexpr int kWarps = 8;  // per block
constexpr int kThreads = kWarps * kWarpSize;

// ---- warp

constexpr int kPerLane = 32;                 // points of a tile for each lane; a bit each in a mask
constexpr int kTile = kPerLane * kWarpSize;  // 12 KB as x, y, z
constexpr int kQuads = kPerLane / 4;         // a lane reads four points at once: 4 lane.. of each 128
constexpr int kQuadPoints = 4 * kWarpSize;

struct Tile {
  float4 x[kTile / 4], y[kTile / 4], z[kTile / 4];
};

struct WarpShared {
  Tile tile;
  Key buffers[kWarps][NearestList<1>::kBuffer];
};

// Points beyond the tile's last lie at infinity.
__device__ __forceinline__ void load_tile(Tile& tile, const float* __restrict__ points, int num) {
  float *x = &tile.x[0].x, *y = &tile.y[0].x, *z = &tile.z[0].x;
  for (int i = threadIdx.x; i < ceil_div(num, kQuadPoints) * kQuadPoints; i += kThreads) {
    x[i] = i < num ? points[3 * i] : kInfinity;
    y[i] = i < num ? points[3 * i + 1] : kInfinity;
    z[i] = i < num ? points[3 * i + 2] : kInfinity;
  }
}

// The point of the tile that `distances[i]` of this lane belongs to.
__device__ __forceinline__ int point_of(int i) { return i / 4 * kQuadPoints + 4 * lane_id() + i % 4; }

__device__ __forceinline__ void tile_distances(const Tile& tile, int num, float3 query, float (&distances)[kPerLane]) {
#pragma unroll
  for (int quad = 0; quad < kQuads; ++quad) {
    float* d = distances + 4 * quad;
    if (kQuadPoints * quad < num) {
      const int i = kWarpSize * quad + lane_id();
      const float4 x = tile.x[i], y = tile.y[i], z = tile.z[i];
      d[0] = sq_distance(query.x, query.y, query.z, x.x, y.x, z.x);
      d[1] = sq_distance(query.x, query.y, query.z, x.y, y.y, z.y);
      d[2] = sq_distance(query.x, query.y, query.z, x.z, y.z, z.z);
      d[3] = sq_distance(query.x, query.y, query.z, x.w, y.w, z.w);
    } else {
      d[0] = d[1] = d[2] = d[3] = kInfinity;
    }
  }
}

// A limit that at least k <= 32 kMinima of a warp's distances are within, and not many more: each lane's kMinima
// smallest are sifted out, and the k-th of all these is found by bisection of its bits, to within a quarter of k.
template <int kMinima>
__device__ __forceinline__ float limit_of(const float (&distances)[kPerLane], int k) {
  float minima[kMinima];
#pragma unroll
  for (float& minimum : minima) minimum = kInfinity;
#pragma unroll
  for (const float distance : distances) {
    float larger = fminf(distance, kInfinity);  // NaN counts as infinity
#pragma unroll
    for (float& minimum : minima) {
      const float d = larger;
      larger = fmaxf(minimum, d);
      minimum = fminf(minimum, d);
    }
  }
  unsigned low = __reduce_min_sync(kAllLanes, __float_as_uint(minima[0]));
  unsigned high = __reduce_max_sync(kAllLanes, __float_as_uint(minima[kMinima - 1]));
  while (low < high) {
    const unsigned middle = low + (high - low) / 2;
    int within = 0;
#pragma unroll
    for (const float minimum : minima) within += __popc(__ballot_sync(kAllLanes, __float_as_uint(minimum) <= middle));
    if (within < k) {
      low = middle + 1;
    } else {
      high = middle;
      if (within <= k + k / 4 + 2) break;
    }
  }
  return __uint_as_float(high);
}

// One warp per query; a block has 8 queries of one cloud. In a tile, all distances first and then only the few within
// the limit, computed a second time, are offered to the list.
template <int kListed>
__global__ void __launch_bounds__(kThreads, 3) knn_warp_kernel(const float* __restrict__ queries,    // [B, M, 3]
                                                               const float* __restrict__ points,     // [B, N, 3]
                                                               const int64_t* __restrict__ lengths,  // [B] or null
                                                               float* __restrict__ sq_dists,         // [B, M, k]
                                                               int64_t* __restrict__ indices,        // [B, M, k]
                                                               int64_t M, int64_t N, int k, unsigned blocks_per_cloud) {
  WarpShared& shared = *shared_memory<WarpShared>();
  const int warp = threadIdx.x / kWarpSize;
  const int64_t b = blockIdx.x / blocks_per_cloud;
  const int64_t m = int64_t{blockIdx.x % blocks_per_cloud} * kWarps + warp;
  const float* cloud = points + b * N * 3;
  const int64_t length = length_of(lengths, b, N);
  const bool has_query = m < M;
  const float* q = queries + (b * M + (has_query ? m : 0)) * 3;
  const float3 query = make_float3(q[0], q[1], q[2]);
  NearestList<kListed> nearest(shared.buffers[warp], k);
  for (int64_t begin = 0; begin < length; begin += kTile) {
    const int num = static_cast<int>(min(length - begin, int64_t{kTile}));
    __syncthreads();  // all have done with the tile before
    load_tile(shared.tile, cloud + begin * 3, num);
    __syncthreads();
    if (!has_query) continue;
    float distances[kPerLane];
    tile_distances(shared.tile, num, query, distances);
    const float limit = begin == 0 ? limit_of<2 * kListed>(distances, k) : sq_dist_of(nearest.threshold());
    unsigned within = 0;  // bit i: distances[i]
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) within |= distances[i] > limit ? 0 : 1u << i;  // NaN is offered too
    while (__any_sync(kAllLanes, within != 0)) {
      const int i = within == 0 ? num : point_of(__ffs(static_cast<int>(within)) - 1);
      within &= within - 1;
      Key key = kNoKey;
      if (i < num) {
        const float x = (&shared.tile.x[0].x)[i], y = (&shared.tile.y[0].x)[i], z = (&shared.tile.z[0].x)[i];
        key = key_of(sq_distance(query.x, query.y, query.z, x, y, z), begin + i);
      }
      nearest.add(key);
    }
  }
  if (has_query) nearest.write(sq_dists + (b * M + m) * k, indices + (b * M + m) * k);
}

void launch_warp(const float* queries, const float* points, const int64_t* lengths, float* sq_dists, int64_t* indices,
                 int64_t B, int64_t M, int64_t N, int64_t k, const Stream& stream) {
  const int64_t blocks_per_cloud = ceil_div<int64_t>(M, kWarps);
  launch("knn", k <= kWarpSize ? knn_warp_kernel<1> : knn_warp_kernel<2>,
         {B * blocks_per_cloud, kThreads, sizeof(WarpShared)}, stream, queries, points, lengths, sq_dists, indices, M,
         N, static_cast<int>(k), static_cast<unsigned>(blocks_per_cloud));
}

// ---- block

constexpr int kDigitBits = 11;
constexpr int kKeyBits = 63;  // the sign of a squared distance is 0
constexpr int kFewPoints = 4096;
constexpr int kManyThreads = 1024;     // from more points than that on
constexpr int64_t kSharedKeys = 8192;  // what is beyond is sorted where the indices will be, in global memory

struct BlockShared {
  unsigned counts[1 << kDigitBits];  // of keys by their next digit
  unsigned warp_sums[kManyThreads / kWarpSize];
  unsigned digit, before, count;  // the digit of the k-th key; how many keys have a lower one, how many the same
  unsigned num_collected;
  Key keys[1];  // min(k, kSharedKeys)
};

// Calls use(key) for all points of the cloud, in the block's threads.
template <typename Use>
__device__ __forceinline__ void for_each_key(const float* __restrict__ cloud, int64_t length, float3 query, Use&& use) {
  for (int64_t i = threadIdx.x; i < length; i += blockDim.x) {
    use(key_of(sq_distance(query.x, query.y, query.z, cloud[3 * i], cloud[3 * i + 1], cloud[3 * i + 2]), i));
  }
}

// Finds the digit of the `wanted`-th key (from 1 on) by the counts of all digits.
__device__ __forceinline__ void choose_digit(BlockShared& shared, unsigned wanted) {
  const int per_thread = (1 << kDigitBits) / blockDim.x, first = threadIdx.x * per_thread;
  const int warp = threadIdx.x / kWarpSize;
  unsigned own = 0;
  for (int i = 0; i < per_thread; ++i) own += shared.counts[first + i];
  unsigned before = sum_to_lane(own);
  if (lane_id() == kWarpSize - 1) shared.warp_sums[warp] = before;
  __syncthreads();
  before -= own;
  for (int w = 0; w < warp; ++w) before += shared.warp_sums[w];
  if (before < wanted && wanted - before <= own) {
    int digit = first;
    for (; wanted - before > shared.counts[digit]; ++digit) before += shared.counts[digit];
    shared.digit = digit;
    shared.before = before;
    shared.count = shared.counts[digit];
  }
  __syncthreads();
}

// One block per query. Digit by digit from the top, keys that begin as the k-th does are counted by their next digit,
// until all that begin so are wanted: 3 passes over the points settle the distance, 3 more the index, where that many
// are equally far. One more pass collects the keys.
__global__ void __launch_bounds__(kManyThreads, 1) knn_block_kernel(const float* __restrict__ queries,    // [B, M, 3]
                                                                    const float* __restrict__ points,     // [B, N, 3]
                                                                    const int64_t* __restrict__ lengths,  // [B] or null
                                                                    float* sq_dists,                      // [B, M, k]
                                                                    int64_t* indices,                     // [B, M, k]
                                                                    int64_t M, int64_t N, int64_t k) {
  BlockShared& shared = *shared_memory<BlockShared>();
  const int64_t row = blockIdx.x, b = row / M;
  const float* cloud = points + b * N * 3;
  const int64_t length = length_of(lengths, b, N);
  const float3 query = make_float3(queries[3 * row], queries[3 * row + 1], queries[3 * row + 2]);
  const int64_t num = min(k, length);
  sq_dists += row * k;
  indices += row * k;

  Key beginning = 0;  // of the k-th key: its bits from `open` on
  int open = kKeyBits;
  unsigned wanted = static_cast<unsigned>(num), count = static_cast<unsigned>(length);  // of those that begin so
  while (wanted < count) {
    for (int i = threadIdx.x; i < 1 << kDigitBits; i += blockDim.x) shared.counts[i] = 0;
    __syncthreads();
    const int bits = min(open, kDigitBits), shift = open - bits;
    for_each_key(cloud, length, query, [&](Key key) {
      if (key >> open == beginning) atomicAdd(&shared.counts[key >> shift & ((1u << bits) - 1)], 1u);
    });
    __syncthreads();
    choose_digit(shared, wanted);
    beginning = beginning << bits | shared.digit;
    wanted -= shared.before;
    count = shared.count;
    open = shift;
  }

  if (threadIdx.x == 0) shared.num_collected = 0;
  __syncthreads();
  Key* keys = k <= kSharedKeys ? shared.keys : reinterpret_cast<Key*>(indices);
  for_each_key(cloud, length, query, [&](Key key) {
    if (key >> open <= beginning) keys[atomicAdd(&shared.num_collected, 1u)] = key;
  });
  __syncthreads();
  sort_block(keys, num);
  for (int64_t slot = threadIdx.x; slot < k; slot += blockDim.x) {
    write_neighbor(slot < num ? keys[slot] : kNoKey, slot, sq_dists, indices);
  }
}

void launch_block(const float* queries, const float* points, const int64_t* lengths, float* sq_dists, int64_t* indices,
                  int64_t B, int64_t M, int64_t N, int64_t k, const Stream& stream) {
  const int64_t shared_bytes = sizeof(BlockShared) + sizeof(Key) * (k <= kSharedKeys ? k : 0);
  launch("knn", knn_block_kernel, {B * M, N <= kFewPoints ? kThreads : kManyThreads, shared_bytes}, stream, queries,
         points, lengths, sq_dists, indices, M, N, k);
}

// ---- the choice

enum class Way { warp = 1, block = 2, tree = 3 };

// Issue slots as counted in the machine code and in simulated searches, at 10^12 a second: the tree's 14 launches take
// as long as 2.5e7. Fewer queries than a device has warps take as long as these.
bool tree_pays(double B, double M, double N, double k) {
  const double rows = std::max(B * M, 2000.0);
  return rows * (1500 + 30 * k) + B * 20 * (N + M) + 2.5e7 < rows * (N / 2 + 20 * k);
}

Way way_of(int64_t B, int64_t M, int64_t N, int64_t k, int path) {
  if (k > kMaxListed) return Way::block;
  if (path != 0) return static_cast<Way>(path);
  return tree_pays(B, M, N, k) ? Way::tree : Way::warp;
}

// ---- backward

constexpr int kStride = kWarpSize + 1;  // floats in shared memory for one coordinate of a warp's terms

// Adds the terms of all lanes to the sums that lanes 0, 1, 2 have of x, y, z: in the order of the lanes, as on the CPU.
__device__ __forceinline__ float add_in_order(float sum, float3 term, float* stage) {
  const int lane = lane_id();
  stage[lane] = term.x;
  stage[kStride + lane] = term.y;
  stage[2 * kStride + lane] = term.z;
  __syncwarp();
  if (lane < 3) {
    for (int i = 0; i < kWarpSize; ++i) sum += stage[kStride * lane + i];
  }
  __syncwarp();
  return sum;
}

// The gradient of grad * |q - p|^2 with respect to q.
__device__ __forceinline__ float3 grad_of(float grad, const float* q, const float* p) {
  return make_float3(2 * grad * (q[0] - p[0]), 2 * grad * (q[1] - p[1]), 2 * grad * (q[2] - p[2]));
}

// One warp per query: its neighbours.
__global__ void __launch_bounds__(kThreads)
    knn_backward_queries_kernel(const float* __restrict__ grad_sq_dists,  // [B, M, k]
                                const float* __restrict__ queries,        // [B, M, 3]
                                const float* __restrict__ points,         // [B, N, 3]
                                const int64_t* __restrict__ indices,      // [B, M, k]
                                float* __restrict__ grad_queries,         // [B, M, 3]
                                int64_t B, int64_t M, int64_t N, int64_t k) {
  const int warp = threadIdx.x / kWarpSize;
  const int64_t m = int64_t{blockIdx.x} * kWarps + warp;  // of all clouds
  if (m >= B * M) return;
  const float* cloud = points + m / M * N * 3;
  float sum = 0;
  for (int64_t begin = 0; begin < k; begin += kWarpSize) {
    const int64_t j = begin + lane_id();
    const int64_t n = j < k ? indices[m * k + j] : -1;
    const bool in_range = n >= 0 && n < N;
    const float3 term = in_range ? grad_of(grad_sq_dists[m * k + j], queries + 3 * m, cloud + 3 * n) : float3{0, 0, 0};
    sum = add_in_order(sum, term, shared_memory<float>() + warp * 3 * kStride);
  }
  if (lane_id() < 3) grad_queries[3 * m + lane_id()] = sum;
}

// One warp per point: the queries that have it among their neighbours.
__global__ void __launch_bounds__(kThreads)
    knn_backward_points_kernel(const float* __restrict__ grad_sq_dists,  // [B, M, k]
                               const float* __restrict__ queries,        // [B, M, 3]
                               const float* __restrict__ points,         // [B, N, 3]
                               const int32_t* __restrict__ offsets,      // [B, N + 1]
                               const int32_t* __restrict__ order,        // [B, M k]
                               float* __restrict__ grad_points,          // [B, N, 3]
                               int64_t B, int64_t M, int64_t N, int64_t k) {
  const int warp = threadIdx.x / kWarpSize;
  const int64_t n = int64_t{blockIdx.x} * kWarps + warp;  // of all clouds
  if (n >= B * N) return;
  const int64_t b = n / N, R = M * k;
  const int32_t* offset = offsets + n + b;  // each cloud has one more offset than points
  const int32_t end = offset[1];
  float sum = 0;
  for (int64_t begin = offset[0]; begin < end; begin += kWarpSize) {
    const int64_t i = begin + lane_id();
    float3 term = {0, 0, 0};
    if (i < end) {
      const unsigned r = order[b * R + i];
      const int64_t m = b * M + r / static_cast<unsigned>(k);
      term = grad_of(-grad_sq_dists[b * R + r], queries + 3 * m, points + 3 * n);
    }
    sum = add_in_order(sum, term, shared_memory<float>() + warp * 3 * kStride);
  }
  if (lane_id() < 3) grad_points[3 * n + lane_id()] = sum;
}

}  // namespace

int64_t knn_workspace_cuda(int64_t B, int64_t M, int64_t N, int64_t k, int path) {
  return way_of(B, M, N, k, path) == Way::tree ? knn_tree_workspace(B, M, N) : 0;
}

void knn_cuda(const float* queries, const float* points, const int64_t* lengths, void* workspace, float* sq_dists,
              int64_t* indices, int64_t B, int64_t M, int64_t N, int64_t k, int path, const Stream& stream) {
  if (B * M == 0) return;
  switch (way_of(B, M, N, k, path)) {
    case Way::warp:
      return launch_warp(queries, points, lengths, sq_dists, indices, B, M, N, k, stream);
    case Way::block:
      return launch_block(queries, points, lengths, sq_dists, indices, B, M, N, k, stream);
    case Way::tree:
      return knn_tree_cuda(queries, points, lengths, workspace, sq_dists, indices, B, M, N, k, stream);
  }
}

void knn_backward_cuda(const float* grad_sq_dists, const float* queries, const float* points, const int64_t* indices,
                       int32_t* workspace, float* grad_queries, float* grad_points, int64_t B, int64_t M, int64_t N,
                       int64_t k, const Stream& stream) {
  constexpr int64_t kSharedBytes = kWarps * 3 * kStride * sizeof(float);
  launch("knn_backward", knn_backward_queries_kernel, {ceil_div<int64_t>(B * M, kWarps), kThreads, kSharedBytes},
         stream, grad_sq_dists, queries, points, indices, grad_queries, B, M, N, k);
  const InverseIndex readers = inverse_index_cuda(indices, nullptr, workspace, B, M * k, N, stream);
  launch("knn_backward", knn_backward_points_kernel, {ceil_div<int64_t>(B * N, kWarps), kThreads, kSharedBytes}, stream,
         grad_sq_dists, queries, points, readers.offsets, readers.order, grad_points, B, M, N, k);
}

}  // namespace jointmae
