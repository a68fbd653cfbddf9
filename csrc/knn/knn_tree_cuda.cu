// A tree over the points of each cloud whose nodes have 32 children, one for each lane, and a bounding box each. It is
// built by sorting the points along a Morton curve: into cells by counting, then chunks of 1024 exactly. Any order of
// the points would do for the result to be exact, a good one only makes the boxes small. So what is left open (the
// order within a cell) or goes wrong (coordinates that are not finite, boxes too large for a float) costs time at most.
//
// A box gives a lower bound of the keys in it: distance to the box, lowest index in it. The bound is computed by the
// same rounded operations as a distance, from differences that are not larger; rounding keeps order, so neither is it.
#include <algorithm>

#include "common/cuda.h"
#include "knn/knn_tree.h"
#include "knn/nearest.h"

namespace jointmae {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;  // per block
constexpr int kFanOut = kWarpSize;            // points of a leaf, children of a node
constexpr int kMaxLevels = 6;                 // for 2^31 points, with at most 32 nodes at the top
constexpr int kAxisBits = 10;                 // of a Morton code, for each coordinate
constexpr int kCellPoints = 16;               // on average; on a surface ten times that, still within a chunk
constexpr int kMaxCellBits = 9;
constexpr int kChunk = 1024;
constexpr int kPointsPerThread = 16;  // when the bounds are found
constexpr int kMaxRun = 8;            // queries of a warp: what the first one lacks, a bound, is an eighth of the cost
constexpr int kWarpsPerSm = 64;       // runs get longer only when there are that many: half of them are resident

struct Box {
  float4 low;  // w: the bits of the lowest index
  float4 high;
};

// The nodes of a level that `num_points` points fill. Level 0 are the leaves; child c of node n is node 32 n + c of the
// level below. A cloud's boxes are those of level 0, then those of level 1...
__host__ __device__ __forceinline__ unsigned num_nodes_at(int level, int64_t num_points) {
  const int shift = 5 * (level + 1);  // up to 30, and there are fewer than 2^31 points
  return (static_cast<unsigned>(num_points) + (1u << shift) - 1) >> shift;
}

struct Tree {
  int top;            // the level with at most 32 nodes
  int64_t num_nodes;  // of a cloud
};

Tree tree_of(int64_t N) {
  Tree tree = {0, num_nodes_at(0, N)};
  while (num_nodes_at(tree.top, N) > kFanOut) tree.num_nodes += num_nodes_at(++tree.top, N);
  return tree;
}

struct Workspace {
  float4* points;    // [B, N] sorted; w: the bits of the index
  float4* queries;   // [B, M] likewise
  Box* boxes;        // [B, num_nodes]
  unsigned* bounds;  // [B, 8]: 6 used, see `ordered`; this and what follows is cleared first
  int* point_cells;  // [B, num_cells]: counts, then where the cell's points begin
  int* query_cells;
  int* ranks;  // [B, max(N, M)]: in the cell, in any order
  int64_t num_cleared, bytes;
};

// Bits of a Morton code that make a cell.
int cell_bits(int64_t N) {
  int bits = 0;
  while (bits < kMaxCellBits && int64_t{kCellPoints} << 3 * (bits + 1) <= N) ++bits;
  return 3 * bits;
}

Workspace workspace_at(void* memory, int64_t B, int64_t M, int64_t N) {
  const int64_t num_cells = int64_t{1} << cell_bits(N);
  Workspace work;
  work.points = static_cast<float4*>(memory);
  work.queries = work.points + B * N;
  work.boxes = reinterpret_cast<Box*>(work.queries + B * M);
  work.bounds = reinterpret_cast<unsigned*>(work.boxes + B * tree_of(N).num_nodes);
  work.point_cells = reinterpret_cast<int*>(work.bounds + 8 * B);
  work.query_cells = work.point_cells + B * num_cells;
  work.ranks = work.query_cells + B * num_cells;
  work.num_cleared = B * (8 + 2 * num_cells);
  work.bytes = reinterpret_cast<char*>(work.ranks + B * std::max(M, N)) - static_cast<char*>(memory);
  return work;
}

// ---- sorting

__global__ void __launch_bounds__(kThreads) clear_kernel(unsigned* __restrict__ memory, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) memory[i] = 0;
}

// An integer that orders as the float does, above 0 for every finite one and for infinity.
__device__ __forceinline__ unsigned ordered(float value) {
  const unsigned bits = __float_as_uint(value);
  return bits ^ (bits >> 31 != 0 ? 0xFFFFFFFFu : 0x80000000u);
}

__device__ __forceinline__ float unordered(unsigned value) {
  return __uint_as_float(value ^ (value >> 31 != 0 ? 0x80000000u : 0xFFFFFFFFu));
}

// The largest x, y, z and the largest of their complements, which are the smallest, of the finite points. A thread has
// 16 points.
__global__ void __launch_bounds__(kThreads) bounds_kernel(const float* __restrict__ points,     // [B, N, 3]
                                                          const int64_t* __restrict__ lengths,  // [B] or null
                                                          unsigned* __restrict__ bounds,        // [B, 8]
                                                          int64_t N, unsigned blocks_per_cloud) {
  const int64_t b = blockIdx.x / blocks_per_cloud;
  const int64_t begin = int64_t{blockIdx.x % blocks_per_cloud} * kThreads * kPointsPerThread;
  const int64_t end = min(length_of(lengths, b, N), begin + kThreads * kPointsPerThread);
  unsigned largest[6] = {0, 0, 0, 0, 0, 0};
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const float* point = points + (b * N + i) * 3;
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const float value = point[c];
      if (!(fabsf(value) < kInfinity)) continue;
      largest[c] = max(largest[c], ordered(value));
      largest[3 + c] = max(largest[3 + c], ~ordered(value));
    }
  }
#pragma unroll
  for (int c = 0; c < 6; ++c) {
    const unsigned of_warp = __reduce_max_sync(kAllLanes, largest[c]);
    if (lane_id() == 0 && of_warp != 0) atomicMax(&bounds[8 * b + c], of_warp);
  }
}

// Puts two zeros before each of the ten bits.
__device__ __forceinline__ unsigned spread(unsigned bits) {
  bits = (bits | bits << 16) & 0x030000FFu;
  bits = (bits | bits << 8) & 0x0300F00Fu;
  bits = (bits | bits << 4) & 0x030C30C3u;
  return (bits | bits << 2) & 0x09249249u;
}

// The place of a point on the Morton curve through the cube that holds the cloud. Halves, so that sides do not
// overflow.
__device__ __forceinline__ unsigned morton_code(const float* point, const unsigned* bounds) {
  float low[3], side = 0;
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    low[c] = 0.5f * unordered(~bounds[3 + c]);
    side = fmaxf(side, 0.5f * unordered(bounds[c]) - low[c]);
  }
  const float scale = (1 << kAxisBits) / side;
  unsigned code = 0;
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    const float cell = fmaxf((0.5f * point[c] - low[c]) * scale, 0.0f);  // NaN gives 0
    code |= spread(static_cast<unsigned>(fminf(cell, (1 << kAxisBits) - 1.0f))) << c;
  }
  return code;
}

// A thread per point: which of those in its cell it is, as it happens.
__global__ void __launch_bounds__(kThreads) count_kernel(const float* __restrict__ points,     // [B, N, 3]
                                                         const int64_t* __restrict__ lengths,  // [B] or null
                                                         const unsigned* __restrict__ bounds,  // [B, 8]
                                                         int* __restrict__ cells,              // [B, 2^cell_bits]
                                                         int* __restrict__ ranks,              // [B, N]
                                                         int64_t N, int cell_bits, unsigned blocks_per_cloud) {
  const int64_t b = blockIdx.x / blocks_per_cloud;
  const int64_t i = int64_t{blockIdx.x % blocks_per_cloud} * kThreads + threadIdx.x;
  if (i >= length_of(lengths, b, N)) return;
  const unsigned cell = morton_code(points + (b * N + i) * 3, bounds + 8 * b) >> (3 * kAxisBits - cell_bits);
  ranks[b * N + i] = atomicAdd(&cells[(b << cell_bits) + cell], 1);
}

// A block per cloud: counts become where the cell's points begin.
__global__ void __launch_bounds__(kChunk) begin_kernel(int* __restrict__ cells, int64_t num_cells) {
  int* warp_sums = shared_memory<int>();
  const int warp = threadIdx.x / kWarpSize;
  cells += blockIdx.x * num_cells;
  int before = 0;
  for (int64_t first = 0; first < num_cells; first += kChunk) {
    const int64_t cell = first + threadIdx.x;
    const int count = cell < num_cells ? cells[cell] : 0;
    int sum = sum_to_lane(count);
    if (lane_id() == kWarpSize - 1) warp_sums[warp] = sum;
    __syncthreads();
    const int sum_of_warps = sum_to_lane(warp_sums[lane_id()]);
    const int before_warp = __shfl_sync(kAllLanes, sum_of_warps, max(warp - 1, 0));
    if (cell < num_cells) cells[cell] = before + (warp == 0 ? 0 : before_warp) + sum - count;
    before += __shfl_sync(kAllLanes, sum_of_warps, kWarpSize - 1);
    __syncthreads();  // all have read the sums
  }
}

// A thread per point.
__global__ void __launch_bounds__(kThreads) place_kernel(const float* __restrict__ points,     // [B, N, 3]
                                                         const int64_t* __restrict__ lengths,  // [B] or null
                                                         const unsigned* __restrict__ bounds,  // [B, 8]
                                                         const int* __restrict__ cells,        // [B, 2^cell_bits]
                                                         const int* __restrict__ ranks,        // [B, N]
                                                         float4* __restrict__ sorted,          // [B, N]
                                                         int64_t N, int cell_bits, unsigned blocks_per_cloud) {
  const int64_t b = blockIdx.x / blocks_per_cloud;
  const int64_t i = int64_t{blockIdx.x % blocks_per_cloud} * kThreads + threadIdx.x;
  if (i >= length_of(lengths, b, N)) return;
  const float* point = points + (b * N + i) * 3;
  const unsigned cell = morton_code(point, bounds + 8 * b) >> (3 * kAxisBits - cell_bits);
  const int64_t place = cells[(b << cell_bits) + cell] + ranks[b * N + i];
  sorted[b * N + place] = make_float4(point[0], point[1], point[2], __int_as_float(static_cast<int>(i)));
}

struct ChunkShared {
  float4 points[kChunk];
  Key keys[kChunk];
};

// A block per 1024 points.
__global__ void __launch_bounds__(kChunk / 2) sort_chunk_kernel(float4* __restrict__ sorted,          // [B, N]
                                                                const int64_t* __restrict__ lengths,  // [B] or null
                                                                const unsigned* __restrict__ bounds,  // [B, 8]
                                                                int64_t N, unsigned blocks_per_cloud) {
  ChunkShared& shared = *shared_memory<ChunkShared>();
  const int64_t b = blockIdx.x / blocks_per_cloud;
  const int64_t begin = int64_t{blockIdx.x % blocks_per_cloud} * kChunk;
  const int num = static_cast<int>(min(length_of(lengths, b, N) - begin, int64_t{kChunk}));
  sorted += b * N + begin;
  for (int i = threadIdx.x; i < num; i += blockDim.x) {
    const float4 point = sorted[i];
    const float xyz[3] = {point.x, point.y, point.z};
    shared.points[i] = point;
    shared.keys[i] = Key{morton_code(xyz, bounds + 8 * b)} << 32 | static_cast<unsigned>(i);
  }
  __syncthreads();
  sort_block(shared.keys, num);
  for (int i = threadIdx.x; i < num; i += blockDim.x) sorted[i] = shared.points[shared.keys[i] & 0xFFFFFFFFu];
}

void sort_along_curve(const float* points, const int64_t* lengths, const Workspace& work, int* cells, float4* sorted,
                      int64_t B, int64_t N, int cell_bits, const Stream& stream) {
  const auto blocks_per_cloud = static_cast<unsigned>(ceil_div<int64_t>(N, kThreads));
  const LaunchShape shape = {B * blocks_per_cloud, kThreads};
  launch("knn: count", count_kernel, shape, stream, points, lengths, work.bounds, cells, work.ranks, N, cell_bits,
         blocks_per_cloud);
  launch("knn: begin", begin_kernel, {B, kChunk, kWarpSize * sizeof(int)}, stream, cells, int64_t{1} << cell_bits);
  launch("knn: place", place_kernel, shape, stream, points, lengths, work.bounds, cells, work.ranks, sorted, N,
         cell_bits, blocks_per_cloud);
  const auto chunks = static_cast<unsigned>(ceil_div<int64_t>(N, kChunk));
  launch("knn: chunks", sort_chunk_kernel, {B * chunks, kChunk / 2, sizeof(ChunkShared)}, stream, sorted, lengths,
         work.bounds, N, chunks);
}

// A warp per node of a level.
__global__ void __launch_bounds__(kThreads)
    boxes_kernel(const float4* __restrict__ sorted,    // [B, N]
                 const int64_t* __restrict__ lengths,  // [B] or null
                 const Box* children,                  // of cloud 0
                 Box* nodes,                           // of cloud 0
                 int level, int64_t num_nodes, int64_t N, unsigned blocks_per_cloud) {
  const int64_t b = blockIdx.x / blocks_per_cloud;
  const int64_t node = int64_t{blockIdx.x % blocks_per_cloud} * kWarps + threadIdx.x / kWarpSize;
  const int64_t child = kFanOut * node + lane_id();
  const int64_t length = length_of(lengths, b, N);
  if (node >= num_nodes_at(level, length)) return;
  float4 low = make_float4(kInfinity, kInfinity, kInfinity, __uint_as_float(0xFFFFFFFFu));
  float4 high = make_float4(-kInfinity, -kInfinity, -kInfinity, 0);
  if (level == 0) {
    if (child < length) low = high = sorted[b * N + child];
  } else if (child < num_nodes_at(level - 1, length)) {
    low = children[b * num_nodes + child].low;
    high = children[b * num_nodes + child].high;
  }
#pragma unroll
  for (int stride = kWarpSize / 2; stride > 0; stride /= 2) {
    low.x = fminf(low.x, __shfl_xor_sync(kAllLanes, low.x, stride));
    low.y = fminf(low.y, __shfl_xor_sync(kAllLanes, low.y, stride));
    low.z = fminf(low.z, __shfl_xor_sync(kAllLanes, low.z, stride));
    high.x = fmaxf(high.x, __shfl_xor_sync(kAllLanes, high.x, stride));
    high.y = fmaxf(high.y, __shfl_xor_sync(kAllLanes, high.y, stride));
    high.z = fmaxf(high.z, __shfl_xor_sync(kAllLanes, high.z, stride));
  }
  low.w = __uint_as_float(__reduce_min_sync(kAllLanes, __float_as_uint(low.w)));
  if (lane_id() == 0) nodes[b * num_nodes + node] = {low, high};
}

// ---- searching

// Not above the key of any point in the box; no coordinate of the query is NaN. What is NaN in the box counts for 0.
__device__ __forceinline__ Key bound_of(const Box& box, float4 query) {
  const float4 low = box.low, high = box.high;
  const float dx = fmaxf(fmaxf(low.x - query.x, query.x - high.x), 0.0f);
  const float dy = fmaxf(fmaxf(low.y - query.y, query.y - high.y), 0.0f);
  const float dz = fmaxf(fmaxf(low.z - query.z, query.z - high.z), 0.0f);
  return key_of((dx * dx + dy * dy) + dz * dz, __float_as_uint(low.w));
}

__device__ __forceinline__ Key smallest_of_warp(Key key) {
  const unsigned high = static_cast<unsigned>(key >> 32), low = static_cast<unsigned>(key);
  const unsigned smallest_high = __reduce_min_sync(kAllLanes, high);
  const unsigned smallest_low = __reduce_min_sync(kAllLanes, high == smallest_high ? low : 0xFFFFFFFFu);
  return Key{smallest_high} << 32 | smallest_low;
}

struct SearchShared {
  Key buffer[NearestList<1>::kBuffer];
  Key waiting[kMaxLevels][kWarpSize];  // bounds of the nodes not yet visited, of the levels above the present one
};

// What k points are within: no more than this are the k nearest of the query away.
template <int kListed>
__device__ __forceinline__ Key farthest_of(const NearestList<kListed>& listed, const float* cloud, float4 query) {
  unsigned farthest = 0;
  listed.for_each([&](Key key, int) {
    const float* point = cloud + 3 * (key & 0xFFFFFFFFu);
    const float sq_dist = key == kNoKey ? 0 : sq_distance(query.x, query.y, query.z, point[0], point[1], point[2]);
    farthest = max(farthest, static_cast<unsigned>((key == kNoKey ? key : key_of(sq_dist, 0)) >> 32));
  });
  return Key{__reduce_max_sync(kAllLanes, farthest)} << 32 | 0xFFFFFFFFu;
}

// Depth first, the nearest node first, until no node that is left can hold a point that is nearer than the k-th.
template <int kListed>
__device__ __forceinline__ void search(NearestList<kListed>& nearest, Key (*waiting)[kWarpSize], float4 query,
                                       const float4* sorted, const Box* boxes, Tree tree, unsigned length, unsigned N) {
  const int lane = lane_id();
  int level = tree.top;
  const Box* nodes = boxes + (tree.num_nodes - num_nodes_at(level, N));  // of the level
  unsigned parent = 0;  // of the nodes whose bounds are here, one in each lane
  const auto bound_of_child = [&] {
    const unsigned node = kFanOut * parent + lane;
    return node < num_nodes_at(level, length) ? bound_of(nodes[node], query) : kNoKey;
  };
  Key bound = bound_of_child();
  while (true) {
    const Key smallest = smallest_of_warp(bound);
    if (smallest >= nearest.threshold()) {
      if (level == tree.top) break;
      nodes += num_nodes_at(level, N);
      bound = waiting[++level][lane];
      parent /= kFanOut;
      continue;
    }
    const int child = __ffs(static_cast<int>(__ballot_sync(kAllLanes, bound == smallest))) - 1;
    if (lane == child) bound = kNoKey;
    if (level > 0) {
      waiting[level--][lane] = bound;
      nodes -= num_nodes_at(level, N);
      parent = kFanOut * parent + child;
      bound = bound_of_child();
      continue;
    }
    const unsigned i = kFanOut * (kFanOut * parent + child) + lane;
    Key key = kNoKey;
    if (i < length) {
      const float4 point = sorted[i];
      key = key_of(sq_distance(query.x, query.y, query.z, point.x, point.y, point.z), __float_as_uint(point.w));
    }
    nearest.add(key);
  }
}

// A warp for a run of queries that are neighbours on the curve, so that the k nearest of one bound those of the next.
template <int kListed>
__global__ void __launch_bounds__(kThreads, 4)
    search_kernel(const float4* __restrict__ queries,   // [B, M] sorted
                  const float4* __restrict__ sorted,    // [B, N] points
                  const float* __restrict__ points,     // [B, N, 3]
                  const int64_t* __restrict__ lengths,  // [B] or null
                  const Box* __restrict__ boxes,        // [B, num_nodes]
                  float* __restrict__ sq_dists,         // [B, M, k]
                  int64_t* __restrict__ indices,        // [B, M, k]
                  Tree tree, int64_t B, int64_t M, int64_t N, int k, int run, unsigned runs_per_cloud) {
  SearchShared& shared = shared_memory<SearchShared>()[threadIdx.x / kWarpSize];
  const int64_t warp = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize, b = warp / runs_per_cloud;
  if (b >= B) return;
  const int64_t length = length_of(lengths, b, N), first = warp % runs_per_cloud * run;
  NearestList<kListed> nearest(shared.buffer, k);
  for (int64_t place = first; place < min(first + run, M); ++place) {
    const float4 query = queries[b * M + place];
    const int64_t row = b * M + __float_as_int(query.w);
    if (query.x != query.x || query.y != query.y || query.z != query.z) {  // so are all distances: the first ones win
      for (int64_t slot = lane_id(); slot < k; slot += kWarpSize) {
        const Key key = slot < length ? key_of(query.x + query.y + query.z, slot) : kNoKey;
        write_neighbor(key, slot, sq_dists + row * k, indices + row * k);
      }
      continue;
    }
    nearest.restart(farthest_of(nearest, points + b * N * 3, query));
    search(nearest, shared.waiting, query, sorted + b * N, boxes + b * tree.num_nodes, tree,
           static_cast<unsigned>(length), static_cast<unsigned>(N));
    nearest.write(sq_dists + row * k, indices + row * k);
  }
}

}  // namespace

int64_t knn_tree_workspace(int64_t B, int64_t M, int64_t N) { return workspace_at(nullptr, B, M, N).bytes; }

void knn_tree_cuda(const float* queries, const float* points, const int64_t* lengths, void* workspace, float* sq_dists,
                   int64_t* indices, int64_t B, int64_t M, int64_t N, int64_t k, const Stream& stream) {
  const Workspace work = workspace_at(workspace, B, M, N);
  const Tree tree = tree_of(N);
  const int bits = cell_bits(N);
  launch("knn: clear", clear_kernel, {ceil_div<int64_t>(work.num_cleared, kThreads), kThreads}, stream, work.bounds,
         work.num_cleared);
  const int64_t bounds_blocks = ceil_div<int64_t>(N, kThreads * kPointsPerThread);
  launch("knn: bounds", bounds_kernel, {B * bounds_blocks, kThreads}, stream, points, lengths, work.bounds, N,
         static_cast<unsigned>(bounds_blocks));
  sort_along_curve(points, lengths, work, work.point_cells, work.points, B, N, bits, stream);
  sort_along_curve(queries, nullptr, work, work.query_cells, work.queries, B, M, bits, stream);
  Box* nodes = work.boxes;
  for (int level = 0; level <= tree.top; ++level) {
    const Box* children = nodes;
    nodes += level > 0 ? num_nodes_at(level - 1, N) : 0;
    const int64_t blocks = ceil_div<int64_t>(num_nodes_at(level, N), kWarps);
    launch("knn: boxes", boxes_kernel, {B * blocks, kThreads}, stream, work.points, lengths, children, nodes, level,
           tree.num_nodes, N, static_cast<unsigned>(blocks));
  }
  const int64_t warps = int64_t{kWarpsPerSm} * device_limits(stream).num_sms;
  const int64_t run = std::clamp<int64_t>(B * M / warps, 1, kMaxRun), runs_per_cloud = ceil_div(M, run);
  launch("knn: search", k <= kWarpSize ? search_kernel<1> : search_kernel<2>,
         {ceil_div<int64_t>(B * runs_per_cloud, kWarps), kThreads, kWarps * sizeof(SearchShared)}, stream, work.queries,
         work.points, points, lengths, work.boxes, sq_dists, indices, tree, B, M, N, static_cast<int>(k),
         static_cast<int>(run), static_cast<unsigned>(runs_per_cloud));
}

}  // namespace jointmae
