// The k nearest as sorted keys: a squared distance and an index in one number, so that ties need no care.
#pragma once

#include "common/cuda.h"

namespace jointmae {

using Key = uint64_t;
inline constexpr Key kNoKey = ~Key{0};  // farther than every point
inline constexpr float kInfinity = __builtin_inff();
inline constexpr int64_t kMaxListed = 64;  // the largest k of a NearestList

// Ascending by distance, then by index. The bits of floats >= 0 order as integers do; NaN is farther than infinity.
__device__ __forceinline__ Key key_of(float sq_dist, int64_t index) {
  return Key{__float_as_uint(sq_dist) & 0x7FFFFFFFu} << 32 | static_cast<unsigned>(index);
}

__device__ __forceinline__ float sq_dist_of(Key key) { return __uint_as_float(static_cast<unsigned>(key >> 32)); }

// Where a cloud has fewer points than slots (a length below k that nobody checked), the rest is infinitely far; a slot
// is less than k, so as an index it is in range.
__device__ __forceinline__ void write_neighbor(Key key, int64_t slot, float* sq_dists, int64_t* indices) {
  sq_dists[slot] = key == kNoKey ? kInfinity : sq_dist_of(key);
  indices[slot] = key == kNoKey ? slot : static_cast<int64_t>(key & 0xFFFFFFFFu);
}

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % kWarpSize; }

// The sum of a value over this lane and all lanes before it.
template <typename T>
__device__ __forceinline__ T sum_to_lane(T value) {
#pragma unroll
  for (int delta = 1; delta < kWarpSize; delta *= 2) {
    const T below = __shfl_up_sync(kAllLanes, value, delta);
    if (lane_id() >= delta) value += below;
  }
  return value;
}

// One step of a sorting network across the lanes, whose pairs are `stride` apart.
__device__ __forceinline__ Key order_pairs(Key mine, int stride, bool ascending) {
  const Key other = __shfl_xor_sync(kAllLanes, mine, stride);
  const bool keep_smaller = ((lane_id() & stride) == 0) == ascending;
  return (mine < other) == keep_smaller ? mine : other;
}

// Sorts keys that rise and then fall, or fall and then rise, along the lanes.
__device__ __forceinline__ Key sort_bitonic(Key key) {
#pragma unroll
  for (int stride = kWarpSize / 2; stride > 0; stride /= 2) key = order_pairs(key, stride, true);
  return key;
}

__device__ __forceinline__ Key sort_warp(Key key) {
#pragma unroll
  for (int size = 2; size <= kWarpSize; size *= 2) {
#pragma unroll
    for (int stride = size / 2; stride > 0; stride /= 2) key = order_pairs(key, stride, (lane_id() & size) == 0);
  }
  return key;
}

// The k nearest of what a warp has seen, k <= 32 kPerLane. What is nearer than the k-th waits in a buffer: to sort 32
// at once and merge them takes less than a third of the instructions of putting each in its place.
template <int kPerLane>
class NearestList {
 public:
  static constexpr int kBuffer = 2 * kWarpSize;  // keys in shared memory, for each warp

  __device__ NearestList(Key* buffer, int k) : buffer_(buffer), k_(k) { restart(kNoKey); }

  // Forgets all keys. At least k of those to come are below `threshold`, or it is kNoKey.
  __device__ __forceinline__ void restart(Key threshold) {
#pragma unroll
    for (int e = 0; e < kPerLane; ++e) entries_[e] = kNoKey;
    threshold_ = threshold;
    num_buffered_ = 0;
  }

  // Only keys below this can still be among the k nearest. The same in all lanes.
  __device__ Key threshold() const { return threshold_; }

  // Takes a key from each lane, kNoKey where there is none; no key twice. All lanes call this together.
  __device__ __forceinline__ void add(Key key) {
    const unsigned nearer = __ballot_sync(kAllLanes, key < threshold_);
    if (nearer == 0) return;
    if (key < threshold_) buffer_[num_buffered_ + __popc(nearer & ((1u << lane_id()) - 1))] = key;
    num_buffered_ += __popc(nearer);
    if (num_buffered_ >= kWarpSize) merge_buffer();
  }

  // Writes the k nearest, in order.
  __device__ __forceinline__ void write(float* sq_dists, int64_t* indices) {  // [k]
    if (num_buffered_ > 0) merge_buffer();
    for_each([&](Key key, int slot) { write_neighbor(key, slot, sq_dists, indices); });
  }

  // Calls use(key, slot) for the k nearest, when all have been merged: each lane for its own.
  template <typename Use>
  __device__ __forceinline__ void for_each(Use&& use) const {
#pragma unroll
    for (int e = 0; e < kPerLane; ++e) {
      const int slot = kWarpSize * e + lane_id();
      if (slot < k_) use(entries_[e], slot);
    }
  }

 private:
  // Merges the first 32 of the buffer with the list, and moves the others to its front.
  __device__ __forceinline__ void merge_buffer() {
    const int lane = lane_id();
    __syncwarp();
    Key batch = lane < num_buffered_ ? buffer_[lane] : kNoKey;
    const Key rest = buffer_[min(kWarpSize + lane, kBuffer - 1)];
    __syncwarp();
    if (kWarpSize + lane < num_buffered_) buffer_[lane] = rest;
    num_buffered_ = max(num_buffered_ - kWarpSize, 0);
    batch = sort_warp(batch);
    Key kth = kNoKey;
#pragma unroll
    for (int e = 0; e < kPerLane; ++e) {
      const Key reversed = __shfl_xor_sync(kAllLanes, batch, kWarpSize - 1);
      if (e + 1 < kPerLane) batch = sort_bitonic(max(entries_[e], reversed));  // for the next entries
      const Key merged = sort_bitonic(min(entries_[e], reversed));
      entries_[e] = merged;
      if ((k_ - 1) / kWarpSize == e) kth = merged;
    }
    threshold_ = min(threshold_, __shfl_sync(kAllLanes, kth, (k_ - 1) % kWarpSize));
  }

  Key entries_[kPerLane];  // ascending; entry e of lane l is neighbour 32 e + l
  Key threshold_;
  Key* buffer_;
  int num_buffered_;
  int k_;
};

// Sorts any number of keys in shared or global memory, ascending, by all threads of a block: the bitonic network whose
// comparisons all point the same way, so that what would lie past the end can be left out.
__device__ __forceinline__ void sort_block(Key* keys, int64_t num) {
  for (int64_t size = 2; size / 2 < num; size *= 2) {
    for (int64_t stride = size / 2; stride > 0; stride /= 2) {
      for (int64_t pair = threadIdx.x;; pair += blockDim.x) {
        const int64_t low = pair + (pair & ~(stride - 1));
        if (low >= num) break;
        const int64_t high = stride == size / 2 ? low ^ (size - 1) : low + stride;
        if (high >= num) continue;
        const Key a = keys[low], b = keys[high];
        if (b < a) {
          keys[low] = b;
          keys[high] = a;
        }
      }
      __syncthreads();
    }
  }
}

}  // namespace jointmae
