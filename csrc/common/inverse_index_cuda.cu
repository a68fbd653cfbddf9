// A stable counting sort of the sources by target. A block has kWarps warps, each with a contiguous share of the
// block's sources and counters of its own: first they count, then the counters are summed up (by key, then by warp) to
// where each warp begins to write, then each warp walks its share again, 32 sources at a time in order. So no order is
// open.
//
// Few targets: a block owns a range of them and looks at all sources of its cloud. Many: the sources are first
// partitioned by range with the same sort, over blocks that own a chunk of the sources each, and then a block owns a
// range and looks at its own sources alone.
#include "common/cuda.h"
#include "common/inverse_index.h"

namespace jointmae {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kShift = 10;             // a range is 2^kShift targets
constexpr int kMaxKeys = 1 << kShift;  // per sort: 64 KB of counters, which every architecture has
constexpr int kScannedRanges = 8;      // up to here reading all sources once per range is cheaper than 3 more launches
constexpr int64_t kChunk = 16 * kThreads;  // sources per block of a partition
constexpr int kAhead = 4;                  // loads in flight per thread
constexpr int kPerScan = 8;                // counts per thread in a step of `scan_kernel`
constexpr int kNone = 0x7FFFFFFF;          // the key of a source that is in no list

// How the sources of a cloud are cut up; no partition where num_chunks is 0.
struct Plan {
  Plan(int64_t R, int64_t N) : num_ranges(N <= kMaxKeys ? 1 : static_cast<int>(ceil_div<int64_t>(N, kMaxKeys))) {
    if (num_ranges > kScannedRanges && num_ranges <= kMaxKeys) num_chunks = static_cast<int>(ceil_div(R, kChunk));
  }
  int num_ranges;
  int num_chunks = 0;

  __host__ __device__ int64_t num_counts() const { return int64_t{num_ranges} * num_chunks + 1; }
};

// Sources begin..end-1 of one cloud, or of a list of them, and what they are sorted by.
struct Sources {
  const int64_t* indices;  // of the cloud
  const int32_t* list;     // or null: all, in order
  int64_t begin, end;
  int64_t N, first_target;
  int shift;

  // Negative for a target below the first.
  __device__ __forceinline__ int key(int source) const {
    const int64_t index = indices[source];
    return index < 0 || index >= N ? kNone : static_cast<int>((index - first_target) >> shift);
  }
};

// Calls body(source, key) for this warp's share, in order, by all lanes together; beyond the share the key is kNone.
template <typename Body>
__device__ __forceinline__ void for_each_source(const Sources& sources, Body&& body) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize, warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int64_t share = ceil_div<int64_t>(sources.end - sources.begin, kThreads) * kWarpSize;
  const int64_t begin = sources.begin + warp * share;
  const int64_t end = begin + share < sources.end ? begin + share : sources.end;
  for (int64_t chunk = begin; chunk < end; chunk += kAhead * kWarpSize) {
    int source[kAhead], key[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int64_t position = chunk + a * kWarpSize + lane;
      source[a] = position >= end ? -1 : sources.list ? sources.list[position] : static_cast<int>(position);
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) key[a] = source[a] < 0 ? kNone : sources.key(source[a]);
#pragma unroll
    for (int a = 0; a < kAhead; ++a) body(source[a], key[a]);
  }
}

// Shared memory of a sort: [kWarps, num_keys] counts, then where each warp writes next; and the warps' totals.
int64_t shared_bytes(int64_t num_keys) { return static_cast<int64_t>(sizeof(int)) * kWarps * (num_keys + 1); }

// The sum of `value` over the threads below this one; `total` over all.
__device__ __forceinline__ int exclusive_sum(int value, int* totals, int& total) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize, warp = static_cast<int>(threadIdx.x) / kWarpSize;
  int sum = value;
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) {
    const int below = __shfl_up_sync(kAllLanes, sum, step);
    if (lane >= step) sum += below;
  }
  if (lane == kWarpSize - 1) totals[warp] = sum;
  __syncthreads();
  int before = 0;
  total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w == warp) before = total;
    total += totals[w];
  }
  __syncthreads();
  return before + sum - value;
}

// Counts each warp's sources by key; returns how many of this thread's have a key below 0.
__device__ __forceinline__ int count_keys(const Sources& sources, int num_keys, int* counts) {
  for (int i = static_cast<int>(threadIdx.x); i < kWarps * num_keys; i += kThreads) counts[i] = 0;
  __syncthreads();
  int* mine = counts + static_cast<int>(threadIdx.x) / kWarpSize * num_keys;
  int below = 0;
  for_each_source(sources, [&](int, int key) {
    if (static_cast<unsigned>(key) < static_cast<unsigned>(num_keys)) atomicAdd(&mine[key], 1);
    below += key < 0;
  });
  __syncthreads();
  return below;
}

// How many sources have this key.
__device__ __forceinline__ int count_of(const int* counts, int num_keys, int key) {
  int count = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) count += counts[w * num_keys + key];
  return count;
}

// Turns the counts of this key into where each warp writes, from `first` on.
__device__ __forceinline__ void set_cursors(int* counts, int num_keys, int key, int first) {
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    const int count = counts[w * num_keys + key];
    counts[w * num_keys + key] = first;
    first += count;
  }
}

// Writes each source to its place.
__device__ __forceinline__ void place(const Sources& sources, int num_keys, int* cursors, int32_t* order) {
  __syncthreads();
  int* mine = cursors + static_cast<int>(threadIdx.x) / kWarpSize * num_keys;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for_each_source(sources, [&](int source, int key) {
    const bool listed = static_cast<unsigned>(key) < static_cast<unsigned>(num_keys);
    if (!__any_sync(kAllLanes, listed)) return;
    const unsigned same = __match_any_sync(kAllLanes, listed ? key : kNone);
    const int first = __ffs(static_cast<int>(same)) - 1;
    int begin = 0;
    if (listed && lane == first) begin = atomicAdd(&mine[key], __popc(same));
    begin = __shfl_sync(kAllLanes, begin, first);
    if (listed) order[begin + __popc(same & ((1u << lane) - 1))] = source;
  });
}

// One block per cloud and range of targets.
__global__ void __launch_bounds__(kThreads, 2)
    sort_kernel(const int64_t* __restrict__ indices,  // [B, R]
                const int64_t* __restrict__ lengths,  // [B] or null
                const int32_t* __restrict__ list,     // [B, R] by range, or null
                const int32_t* __restrict__ starts,   // [B, plan.num_counts()]: where in the list ranges begin
                int32_t* __restrict__ offsets,        // [B, N + 1]
                int32_t* __restrict__ order,          // [B, R]
                int64_t R, int64_t N, Plan plan) {
  const int64_t b = blockIdx.x / plan.num_ranges, range = blockIdx.x % plan.num_ranges;
  Sources sources{indices + b * R, nullptr, 0, length_of(lengths, b, R), N, range << kShift, 0};
  if (list != nullptr) {
    const int32_t* start = starts + b * plan.num_counts() + range * plan.num_chunks;
    sources.list = list + b * R;
    sources.begin = start[0];
    sources.end = start[plan.num_chunks];
  }
  const int64_t targets = N - sources.first_target;
  const int num_keys = static_cast<int>(targets < kMaxKeys ? targets : kMaxKeys);
  int* counts = shared_memory<int>();
  int* totals = counts + kWarps * num_keys;
  int first, total;  // where the keys to come begin; a sum
  exclusive_sum(count_keys(sources, num_keys, counts), totals, first);
  first += static_cast<int>(sources.begin);
  for (int keys = 0; keys < num_keys; keys += kThreads) {
    const int key = keys + static_cast<int>(threadIdx.x);
    const int count = key < num_keys ? count_of(counts, num_keys, key) : 0;
    const int begin = first + exclusive_sum(count, totals, total);
    if (key < num_keys) {
      offsets[b * (N + 1) + sources.first_target + key] = begin;
      set_cursors(counts, num_keys, key, begin);
    }
    first += total;
  }
  if (range == plan.num_ranges - 1 && threadIdx.x == 0) offsets[b * (N + 1) + N] = first;
  place(sources, num_keys, counts, order + b * R);
}

// The sources of one chunk, to be sorted by range.
__device__ __forceinline__ Sources chunk_of(const int64_t* indices, const int64_t* lengths, int64_t R, int64_t N,
                                            const Plan& plan) {
  const int64_t b = blockIdx.x / plan.num_chunks, begin = blockIdx.x % plan.num_chunks * kChunk;
  const int64_t length = length_of(lengths, b, R), end = begin + kChunk < length ? begin + kChunk : length;
  return {indices + b * R, nullptr, begin, begin < end ? end : begin, N, 0, kShift};
}

// One block per cloud and chunk.
__global__ void __launch_bounds__(kThreads, 2)
    count_kernel(const int64_t* __restrict__ indices, const int64_t* __restrict__ lengths,  // as above
                 int32_t* __restrict__ counts,  // [B, plan.num_counts()]: by range, then by chunk; the last stays free
                 int64_t R, int64_t N, Plan plan) {
  int* counters = shared_memory<int>();
  const int num_ranges = plan.num_ranges;
  count_keys(chunk_of(indices, lengths, R, N, plan), num_ranges, counters);
  int32_t* mine = counts + blockIdx.x / plan.num_chunks * plan.num_counts() + blockIdx.x % plan.num_chunks;
  for (int range = static_cast<int>(threadIdx.x); range < num_ranges; range += kThreads) {
    mine[range * plan.num_chunks] = count_of(counters, num_ranges, range);
  }
}

// One block per cloud: counts become sums of all before them, and the last one the sum of all.
__global__ void __launch_bounds__(kThreads, 2) scan_kernel(int32_t* __restrict__ counts, Plan plan) {
  auto* totals = shared_memory<int>();
  const int64_t num_counts = plan.num_counts() - 1;
  int32_t* mine = counts + blockIdx.x * plan.num_counts();
  int first = 0;
  for (int64_t tile = 0; tile < num_counts; tile += kThreads * kPerScan) {
    const int64_t begin = tile + threadIdx.x * kPerScan;
    int count[kPerScan], sum = 0, total;
#pragma unroll
    for (int i = 0; i < kPerScan; ++i) sum += count[i] = begin + i < num_counts ? mine[begin + i] : 0;
    int place = first + exclusive_sum(sum, totals, total);
#pragma unroll
    for (int i = 0; i < kPerScan; ++i) {
      if (begin + i < num_counts) mine[begin + i] = place;
      place += count[i];
    }
    first += total;
  }
  if (threadIdx.x == 0) mine[num_counts] = first;
}

// One block per cloud and chunk.
__global__ void __launch_bounds__(kThreads, 2)
    partition_kernel(const int64_t* __restrict__ indices, const int64_t* __restrict__ lengths,  // as above
                     const int32_t* __restrict__ starts,  // [B, plan.num_counts()]
                     int32_t* __restrict__ list,          // [B, R]
                     int64_t R, int64_t N, Plan plan) {
  int* counters = shared_memory<int>();
  const int64_t b = blockIdx.x / plan.num_chunks;
  const int num_ranges = plan.num_ranges;
  const Sources sources = chunk_of(indices, lengths, R, N, plan);
  count_keys(sources, num_ranges, counters);
  const int32_t* mine = starts + b * plan.num_counts() + blockIdx.x % plan.num_chunks;
  for (int range = static_cast<int>(threadIdx.x); range < num_ranges; range += kThreads) {
    set_cursors(counters, num_ranges, range, mine[range * plan.num_chunks]);
  }
  place(sources, num_ranges, counters, list + b * R);
}

}  // namespace

int64_t inverse_index_size(int64_t B, int64_t R, int64_t N) {
  const Plan plan(R, N);
  return B * (N + 1 + R) + (plan.num_chunks > 0 ? B * (R + plan.num_counts()) : 0);
}

InverseIndex inverse_index_cuda(const int64_t* indices, const int64_t* lengths, int32_t* workspace, int64_t B,
                                int64_t R, int64_t N, const Stream& stream) {
  const Plan plan(R, N);
  int32_t* offsets = workspace;
  int32_t* order = offsets + B * (N + 1);
  int32_t *list = nullptr, *counts = nullptr;
  if (plan.num_chunks > 0) {
    list = order + B * R;
    counts = list + B * R;
    const LaunchShape by_chunk{B * plan.num_chunks, kThreads, shared_bytes(plan.num_ranges)};
    launch("inverse_index: count", count_kernel, by_chunk, stream, indices, lengths, counts, R, N, plan);
    launch("inverse_index: scan", scan_kernel, {B, kThreads, sizeof(int) * kWarps}, stream, counts, plan);
    launch("inverse_index: partition", partition_kernel, by_chunk, stream, indices, lengths, counts, list, R, N, plan);
  }
  const LaunchShape by_range{B * plan.num_ranges, kThreads, shared_bytes(N < kMaxKeys ? N : kMaxKeys)};
  launch("inverse_index: sort", sort_kernel, by_range, stream, indices, lengths, list, counts, offsets, order, R, N,
         plan);
  return {offsets, order};
}

}  // namespace jointmae
