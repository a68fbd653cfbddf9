// Each sample needs the one before it, so what counts is how long a step takes: lower every point's distance to that of
// the new sample, then find the largest. All three ways keep a cloud on the chip while they sample it:
//   - a block per cloud, points and distances in registers: one barrier of the block a step;
//   - a cluster of blocks per cloud, points in shared memory, distances in registers: one barrier of the cluster;
//   - all blocks that the device holds, as the cluster: one barrier of the grid; what does not fit is read each step.
// A point that is not finite begins at distance 0, so it is sampled only when nothing else is left; distances to such a
// point (it may be the start) are NaN or infinite and lower none. Nor does padding ever win: its distance is 0 too, its
// index above 0, and point 0 always exists.
#include <algorithm>

#include "common/cuda.h"
#include "farthest_point_sample/farthest_point_sample.h"

namespace jointmae {
namespace {

constexpr int kMaxThreads = 1024;  // per block
constexpr int kMaxWarps = kMaxThreads / kWarpSize;
constexpr int kMaxClusterSize = 8;           // what every device with clusters can do
constexpr int kMaxGridBlocks = kMaxThreads;  // a thread for each one's candidate; no device has more SMs

// ---- Largest distances

// A distance's bits, which order as it does since none is negative, above the complement of its point's index: the
// largest key is the farthest point, the lowest of equals.
using Key = unsigned long long;

__device__ __forceinline__ Key make_key(float sq_dist, unsigned index) {
  return Key{__float_as_uint(sq_dist)} << 32 | ~index;
}

__device__ __forceinline__ unsigned index_of(Key key) { return ~static_cast<unsigned>(key); }

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % kWarpSize; }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / kWarpSize; }

// The largest key of a warp, in all its lanes.
__device__ __forceinline__ Key warp_max(Key key) {
  const unsigned high = static_cast<unsigned>(key >> 32);
  const unsigned most = __reduce_max_sync(kAllLanes, high);
  return Key{most} << 32 | __reduce_max_sync(kAllLanes, high == most ? static_cast<unsigned>(key) : 0u);
}

// The largest key of a block, in all its threads; each of `slots` is of a warp, or 0. At most one barrier, so the call
// before must have had other slots.
template <int kWarps>
__device__ __forceinline__ Key block_max(Key key, Key* slots) {  // [kWarps], shared
  key = warp_max(key);
  if constexpr (kWarps > 1) {
    slots[warp_index()] = key;  // the same from each lane: no branch
    __syncthreads();
    if constexpr (kWarps == 4) {  // sooner done than two reductions
      key = max(max(slots[0], slots[1]), max(slots[2], slots[3]));
    } else {
      key = warp_max(lane_index() < kWarps ? slots[lane_index()] : 0);
    }
  }
  return key;
}

// ---- Distances of one thread's points

struct Point {
  float x, y, z;
};

__device__ __forceinline__ Point point_at(const float* xyz, int64_t i) {
  return {xyz[i * 3], xyz[i * 3 + 1], xyz[i * 3 + 2]};
}

__device__ __forceinline__ float first_sq_dist(Point p) {
  return sq_distance(p.x, p.y, p.z, p.x, p.y, p.z) == 0 ? __uint_as_float(0x7F800000u) : 0.0f;  // infinity if finite
}

// The smaller of a point's distance and that to the new sample; fminf gives the number beside a NaN.
__device__ __forceinline__ float nearer(float sq_dist, Point p, Point sample) {
  return fminf(sq_dist, sq_distance(p.x, p.y, p.z, sample.x, sample.y, sample.z));
}

// The farthest of some points: its distance and where it is among them.
struct Farthest {
  float sq_dist;
  unsigned at;
};

// Points of `a` come before those of `b`, so the first of equals stays.
__device__ __forceinline__ Farthest farther(Farthest a, Farthest b) { return b.sq_dist > a.sq_dist ? b : a; }

// By a tournament, in which a comparison waits for few others.
template <int K>
__device__ __forceinline__ Farthest farthest_of(const float (&sq_dist)[K]) {
  Farthest winner[K];
#pragma unroll
  for (unsigned k = 0; k < K; ++k) winner[k] = {sq_dist[k], k};
#pragma unroll
  for (unsigned step = 1; step < K; step *= 2) {
#pragma unroll
    for (unsigned k = 0; k < K; k += 2 * step) winner[k] = farther(winner[k], winner[k + step]);
  }
  return winner[0];
}

// ---- A cloud per block

constexpr int kBlockPoints = 16 * 512;  // x, y, z and distance of 16 points a thread: half of a device's registers

// A block of T threads per cloud; thread t has points t, t + T, ... t + (K - 1) T. The copy of the cloud in shared
// memory is for the coordinates of samples.
template <int K, int T>
__global__ void __launch_bounds__(T) block_kernel(const float* __restrict__ points,     // [B, N, 3]
                                                  const int64_t* __restrict__ lengths,  // [B] or null
                                                  int64_t* __restrict__ indices,        // [B, M]
                                                  int N, int M, int start) {
  constexpr int kWarps = T / kWarpSize;
  const int64_t b = blockIdx.x;
  const unsigned t = threadIdx.x, length = static_cast<unsigned>(length_of(lengths, b, N));
  Key* slots = shared_memory<Key>();                          // [2, kWarps]
  float* xyz = reinterpret_cast<float*>(slots + 2 * kWarps);  // [length, 3]
  points += b * N * 3;
  indices += b * M;
  for (unsigned i = t; i < length * 3; i += T) xyz[i] = points[i];
  __syncthreads();

  Point mine[K];
  float sq_dist[K];
#pragma unroll
  for (unsigned k = 0; k < K; ++k) {
    const unsigned i = k * T + t;
    mine[k] = i < length ? point_at(xyz, i) : Point{};
    sq_dist[k] = i < length ? first_sq_dist(mine[k]) : 0;
  }
  unsigned last = min(static_cast<unsigned>(start), length - 1);
  if (t == 0) indices[0] = last;
  for (int m = 1; m < M; ++m) {
    const Point sample = point_at(xyz, last);
#pragma unroll
    for (unsigned k = 0; k < K; ++k) sq_dist[k] = nearer(sq_dist[k], mine[k], sample);
    const Farthest farthest = farthest_of(sq_dist);
    const Key key = make_key(farthest.sq_dist, farthest.at * T + t);
    last = index_of(block_max<kWarps>(key, slots + m % 2 * kWarps));
    if (t == 0) indices[m] = last;
  }
}

// ---- A cloud per team of blocks

constexpr int kFours = 4;                              // of distances a thread, which has at most 64 registers
constexpr int kTeamPoints = 4 * kFours * kMaxThreads;  // on the chip, per block

// The farthest point that some block knows.
struct alignas(16) Candidate {
  Key key;
  Point point;
};

struct TeamShared {
  Key slots[2][kMaxWarps];
  Candidate from_blocks[2][kMaxClusterSize];  // of the cluster
  Candidate from_warps[kMaxWarps];            // in the grid
};

// The farthest of at most 32 candidates, in all lanes of a warp.
__device__ __forceinline__ Candidate best_of(const Candidate* candidates, int count) {
  const Candidate mine = lane_index() < count ? candidates[lane_index()] : Candidate{};
  const Key key = warp_max(mine.key);
  const int owner = __ffs(static_cast<int>(__ballot_sync(kAllLanes, mine.key == key))) - 1;
  return {key,
          {__shfl_sync(kAllLanes, mine.point.x, owner), __shfl_sync(kAllLanes, mine.point.y, owner),
           __shfl_sync(kAllLanes, mine.point.z, owner)}};
}

// Each block writes its candidate to every block of the cluster, so that after the barrier all reads are near.
__device__ __forceinline__ Candidate farthest_in_cluster(const Candidate& mine, Candidate* from_blocks, int rank,
                                                         int team) {
  const int t = static_cast<int>(threadIdx.x);
  if (t < team) *cluster_shared(from_blocks + rank, static_cast<unsigned>(t)) = mine;
  cluster_sync();
  return best_of(from_blocks, team);
}

// Through global memory: each warp takes up to 32 blocks' candidates, then each takes the warps'.
__device__ __forceinline__ Candidate farthest_in_grid(const Candidate& mine, Candidate* from_blocks,
                                                      Candidate* from_warps, int rank, int team) {
  if (threadIdx.x == 0) from_blocks[rank] = mine;
  grid_sync();
  const int begin = warp_index() * kWarpSize, num_warps = ceil_div(team, kWarpSize);
  if (warp_index() < num_warps) {
    const Candidate best = best_of(from_blocks + begin, team - begin);
    if (lane_index() == 0) from_warps[warp_index()] = best;
  }
  __syncthreads();
  return best_of(from_warps, num_warps);
}

// A team of blocks per cloud, each with an equal share of its points: the first `room` of these on the chip, where a
// thread has four neighbours at a time, the rest in global memory. A team is a cluster or, with kGrid, blocks of a grid
// that all run at once.
template <bool kGrid>
__global__ void __launch_bounds__(kMaxThreads)
    team_kernel(const float* __restrict__ points,     // [B, N, 3]
                const int64_t* __restrict__ lengths,  // [B] or null
                int64_t* __restrict__ indices,        // [B, M]
                Candidate* from_blocks,               // [B, 2, team]; kGrid only
                float* __restrict__ streamed,         // [N], distances of what is not on the chip; only for one team
                int N, int M, int start, int team, int room) {
  const int64_t b = blockIdx.x / static_cast<unsigned>(team);
  const int rank = static_cast<int>(blockIdx.x % static_cast<unsigned>(team));
  const unsigned T = blockDim.x, t = threadIdx.x, length = static_cast<unsigned>(length_of(lengths, b, N));
  const unsigned share = ceil_div(ceil_div(length, static_cast<unsigned>(team)), 4u) * 4;
  const unsigned begin = min(static_cast<unsigned>(rank) * share, length), end = min(begin + share, length);
  const unsigned num_near = min(end - begin, static_cast<unsigned>(room));  // on the chip
  TeamShared& shared = *shared_memory<TeamShared>();
  float* xyz = reinterpret_cast<float*>(&shared + 1);  // [num_near, 3]
  points += b * N * 3;
  indices += b * M;
  if constexpr (kGrid) from_blocks += b * 2 * team;
  for (unsigned i = t; i < num_near * 3; i += T) xyz[i] = points[int64_t{begin} * 3 + i];
  for (unsigned i = t; i < 2 * kMaxWarps; i += T) shared.slots[i / kMaxWarps][i % kMaxWarps] = 0;
  __syncthreads();

  float sq_dist[kFours][4];
#pragma unroll
  for (unsigned k = 0; k < kFours * 4; ++k) {
    const unsigned i = (k / 4 * T + t) * 4 + k % 4;
    sq_dist[k / 4][k % 4] = i < num_near ? first_sq_dist(point_at(xyz, i)) : 0;
  }
  for (unsigned i = begin + num_near + t; i < end; i += T) streamed[i] = first_sq_dist(point_at(points, i));
  if (!kGrid && team > 1) cluster_sync();  // all blocks are there before one writes to another

  const unsigned first = min(static_cast<unsigned>(start), length - 1);
  Candidate last = {make_key(0, first), point_at(points, first)};
  if (rank == 0 && t == 0) indices[0] = first;
  for (int m = 1; m < M; ++m) {
    Farthest farthest{0, begin + t * 4};
#pragma unroll
    for (unsigned k = 0; k < kFours; ++k) {
      const unsigned i = (k * T + t) * 4;
      if (i < num_near) {
        const float4* four = reinterpret_cast<const float4*>(xyz + i * 3);
        const float4 p = four[0], q = four[1], r = four[2];
        sq_dist[k][0] = nearer(sq_dist[k][0], {p.x, p.y, p.z}, last.point);
        sq_dist[k][1] = nearer(sq_dist[k][1], {p.w, q.x, q.y}, last.point);
        sq_dist[k][2] = nearer(sq_dist[k][2], {q.z, q.w, r.x}, last.point);
        sq_dist[k][3] = nearer(sq_dist[k][3], {r.y, r.z, r.w}, last.point);
        const Farthest of_four = farthest_of(sq_dist[k]);
        farthest = farther(farthest, {of_four.sq_dist, begin + i + of_four.at});
      }
    }
    for (unsigned i = begin + num_near + t; i < end; i += T) {
      const float before = streamed[i], now = nearer(before, point_at(points, i), last.point);
      if (now < before) streamed[i] = now;
      farthest = farther(farthest, {now, i});
    }

    const Key key = block_max<kMaxWarps>(make_key(farthest.sq_dist, farthest.at), shared.slots[m % 2]);
    const unsigned index = index_of(key);
    last = {key, {}};
    if (index - begin < num_near) {
      last.point = point_at(xyz, index - begin);
    } else if (index < end) {
      last.point = point_at(points, index);
    }
    if constexpr (kGrid) {
      last = farthest_in_grid(last, from_blocks + m % 2 * team, shared.from_warps, rank, team);
    } else if (team > 1) {
      last = farthest_in_cluster(last, shared.from_blocks[m % 2], rank, team);
    }
    if (rank == 0 && t == 0) indices[m] = index_of(last.key);
  }
}

// ---- Launches

struct Clouds {
  const float* points;     // [B, N, 3]
  const int64_t* lengths;  // [B] or null
  int64_t* indices;        // [B, M]
  int64_t B, N, M, start;
};

int whole_warps(int64_t threads) { return static_cast<int>(ceil_div(threads, int64_t{kWarpSize})) * kWarpSize; }

template <int K, int T>
void launch_block(const Clouds& c, const Stream& stream) {
  const int64_t shared_bytes = 2 * T / kWarpSize * sizeof(Key) + c.N * 3 * sizeof(float);
  launch("farthest_point_sample, a block per cloud", block_kernel<K, T>, {c.B, T, shared_bytes}, stream, c.points,
         c.lengths, c.indices, c.N, c.M, c.start);
}

// K T points. One warp as long as that takes no longer than a barrier; four, which have an issue unit each; then as
// many points a thread as registers allow, since the rest of a step costs a warp as much as four or five points a
// thread.
void launch_blocks(const Clouds& c, const Stream& stream) {
  if (c.N <= 32) return launch_block<1, 32>(c, stream);
  if (c.N <= 64) return launch_block<2, 32>(c, stream);
  if (c.N <= 128) return launch_block<4, 32>(c, stream);
  if (c.N <= 256) return launch_block<8, 32>(c, stream);
  if (c.N <= 512) return launch_block<4, 128>(c, stream);
  if (c.N <= 1024) return launch_block<8, 128>(c, stream);
  if (c.N <= 2048) return launch_block<8, 256>(c, stream);
  if (c.N <= 4096) return launch_block<16, 256>(c, stream);
  launch_block<16, 512>(c, stream);
}

// Points of a block's share that it can keep on the chip.
int64_t room_on(const DeviceLimits& device) {
  const int64_t in_shared = (device.max_shared_bytes - static_cast<int64_t>(sizeof(TeamShared))) / (3 * sizeof(float));
  return std::min<int64_t>(kTeamPoints, in_shared / 4 * 4);
}

LaunchShape team_shape(int64_t num_teams, int64_t team, int64_t N, int64_t room) {
  const int64_t near = std::min(room, ceil_div(ceil_div(N, team), int64_t{4}) * 4);
  // As many points a thread as it can have, since the rest of a step costs a warp as much as ten points a thread.
  const int64_t threads = std::max(team, ceil_div(near, int64_t{4 * kFours}));
  return {num_teams * team, whole_warps(threads), static_cast<int64_t>(sizeof(TeamShared) + near * 3 * sizeof(float))};
}

// The largest clusters that still run all at once, since a step takes less the fewer points a block has. A part of a
// device may have too few multiprocessors for a whole cluster, so CUDA is asked.
LaunchShape cluster_shape(const Clouds& c, const DeviceLimits& device, int64_t room, const Stream& stream) {
  const int64_t limit = device.capability >= 90 ? kMaxClusterSize : 1;
  int64_t size = 1;
  while (size < limit && (size * room < c.N || c.B * size * 2 <= device.num_sms)) size *= 2;
  while (true) {
    LaunchShape shape = team_shape(c.B, size, c.N, room);
    shape.cluster_size = static_cast<int>(size);
    if (size / 2 * room < c.N || resident_clusters(team_kernel<false>, shape, stream) >= c.B) return shape;
    size /= 2;
  }
}

void launch_clusters(const Clouds& c, const LaunchShape& shape, int64_t room, const Stream& stream) {
  launch("farthest_point_sample, a cluster per cloud", team_kernel<false>, shape, stream, c.points, c.lengths,
         c.indices, nullptr, nullptr, c.N, c.M, c.start, shape.cluster_size, room);
}

// As many clouds at a time as fit on the chip, since a barrier costs more than the work between two.
void launch_grids(const Clouds& c, int64_t room, void* workspace, const Stream& stream) {
  const int64_t shared_bytes = team_shape(1, 1, room, room).shared_bytes;
  const int64_t num_blocks =
      std::min<int64_t>(kMaxGridBlocks, resident_blocks(team_kernel<true>, kMaxThreads, shared_bytes, stream));
  Candidate* from_blocks = static_cast<Candidate*>(workspace);
  float* streamed = reinterpret_cast<float*>(from_blocks + 2 * kMaxGridBlocks);
  const int64_t at_once = std::max<int64_t>(1, num_blocks / ceil_div(c.N, room));
  for (int64_t b = 0; b < c.B; b += at_once) {
    const int64_t num_teams = std::min(at_once, c.B - b), team = num_blocks / num_teams;
    LaunchShape shape = team_shape(num_teams, team, c.N, room);
    shape.all_blocks_at_once = true;
    launch("farthest_point_sample, all blocks per cloud", team_kernel<true>, shape, stream, c.points + b * c.N * 3,
           c.lengths ? c.lengths + b : nullptr, c.indices + b * c.M, from_blocks, streamed, c.N, c.M, c.start, team,
           room);
  }
}

}  // namespace

int64_t farthest_point_sample_workspace_cuda(int64_t N, int path) {
  if (path == 1 || path == 2 || (path == 0 && N <= kBlockPoints)) return 0;
  return 2 * kMaxGridBlocks * sizeof(Candidate) + N * sizeof(float);
}

void farthest_point_sample_cuda(const float* points, const int64_t* lengths, int64_t* indices, void* workspace,
                                int64_t B, int64_t N, int64_t M, int64_t start, int path, const Stream& stream) {
  const Clouds clouds{points, lengths, indices, B, N, M, start};
  if (path == 1 || (path == 0 && N <= kBlockPoints)) return launch_blocks(clouds, stream);
  const DeviceLimits device = device_limits(stream);
  const int64_t room = room_on(device);
  const int64_t cluster_room = room * (device.capability >= 90 ? kMaxClusterSize : 1);
  if (path == 2 || (path == 0 && N <= cluster_room)) {
    const LaunchShape shape = cluster_shape(clouds, device, room, stream);
    const bool fits = shape.cluster_size == 1 || resident_clusters(team_kernel<false>, shape, stream) > 0;
    if (path == 2 || fits) return launch_clusters(clouds, shape, room, stream);
  }
  launch_grids(clouds, room, workspace, stream);
}

}  // namespace jointmae
