// All that a kernel file needs of CUDA beyond the language: the one way to launch, the one way to get shared memory,
// and the barriers of clusters and grids. tests/simt/simt.h has the same words for g++, so that the kernels also run on
// the CPU; for its sake a kernel file
//   - includes this header and no other of CUDA's,
//   - launches by `launch`, never by <<<>>>, and has its blocks along x alone (any number below 2^31),
//   - has no __shared__ variables, only what `shared_memory` gives, and no inline PTX,
//   - uses no atomics on floating-point numbers, whose order, and so whose bits, would be open.
#pragma once

#if defined(JOINTMAE_SIMT)
#include "simt.h"
#else
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "common/stream.h"

namespace jointmae {

// Throws std::runtime_error with what CUDA says and what was being done.
inline void check_cuda(cudaError_t status, const char* doing) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // a launch that failed must not be blamed on the next one
  throw std::runtime_error(std::string(doing) + ": " + cudaGetErrorName(status) + ", " + cudaGetErrorString(status));
}

// Makes a device the current one for as long as it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check_cuda(cudaGetDevice(&before_), "asking for the current device");
    if (before_ != device) check_cuda(cudaSetDevice(device), "choosing the device of the tensors");
    changed_ = before_ != device;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Lets the kernel have `bytes` of shared memory per block. The limit is raised to what the device has, not to `bytes`:
// another thread may be about to launch the same kernel with more.
template <typename... Parameters>
void allow_shared_memory(const char* doing, void (*kernel)(Parameters...), int64_t bytes, int device) {
  if (bytes <= 48 << 10) return;  // so much every kernel has
  int most = 0;
  check_cuda(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), doing);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), doing);
}

struct LaunchShape {
  int64_t num_blocks;               // 0 launches nothing
  int threads;                      // per block
  int64_t shared_bytes = 0;         // per block, as `shared_memory` gives them
  int cluster_size = 1;             // blocks per cluster, a divisor of num_blocks; above 1 only from capability 90 on
  bool all_blocks_at_once = false;  // a cooperative launch, for `grid_sync`; at most `resident_blocks` blocks
};

// Enqueues kernel(arguments...) on the stream; waits for nothing. Throws std::runtime_error if CUDA refuses.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const LaunchShape& shape, const Stream& stream,
            Arguments&&... arguments) {
  if (shape.num_blocks == 0) return;
  const DeviceGuard guard(stream.device);
  allow_shared_memory(name, kernel, shape.shared_bytes, stream.device);
  if (shape.cluster_size > 8) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), name);
  }
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(shape.num_blocks));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream.handle);
  config.attrs = attributes;
  if (shape.cluster_size > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {static_cast<unsigned>(shape.cluster_size), 1, 1};
  }
  if (shape.all_blocks_at_once) {
    attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
    attributes[config.numAttrs++].val.cooperative = 1;
  }
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(std::forward<Arguments>(arguments))...), name);
}

// What kernels are chosen by.
struct DeviceLimits {
  int num_sms;
  int max_shared_bytes;  // per block
  int capability;        // 80, 90, 120...
};

inline DeviceLimits device_limits(const Stream& stream) {
  const auto ask = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, attribute, stream.device), "asking for a device's limits");
    return value;
  };
  return {ask(cudaDevAttrMultiProcessorCount), ask(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          10 * ask(cudaDevAttrComputeCapabilityMajor) + ask(cudaDevAttrComputeCapabilityMinor)};
}

// How many blocks of a kernel the device holds at once.
template <typename... Parameters>
int64_t resident_blocks(void (*kernel)(Parameters...), int threads, int64_t shared_bytes, const Stream& stream) {
  const DeviceGuard guard(stream.device);
  int per_sm = 0;
  allow_shared_memory("asking for shared memory", kernel, shared_bytes, stream.device);
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, kernel, threads, static_cast<size_t>(shared_bytes)),
             "asking how many blocks fit");
  return int64_t{per_sm} * device_limits(stream).num_sms;
}

// The block's `shared_bytes` of shared memory, aligned to 16 bytes and uninitialised.
template <typename T>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char jointmae_shared_memory[];
  return reinterpret_cast<T*>(jointmae_shared_memory);
}

// A barrier of all threads of all blocks, of a launch with all_blocks_at_once; writes before it are seen after it.
__device__ __forceinline__ void grid_sync() { cooperative_groups::this_grid().sync(); }

// Clusters exist from capability 90 on; before, a launch with a cluster is refused and these are never reached.
__device__ __forceinline__ void cluster_sync() {
#if __CUDA_ARCH__ >= 900
  cooperative_groups::this_cluster().sync();
#endif
}

// The rank of this block in its cluster.
__device__ __forceinline__ unsigned cluster_rank() {
#if __CUDA_ARCH__ >= 900
  return cooperative_groups::this_cluster().block_rank();
#else
  return 0;
#endif
}

// Where the block of rank `rank` has what lies at `mine` in this block's shared memory.
template <typename T>
__device__ __forceinline__ T* cluster_shared(T* mine, unsigned rank) {
#if __CUDA_ARCH__ >= 900
  return cooperative_groups::this_cluster().map_shared_rank(mine, static_cast<int>(rank));
#else
  return mine;
#endif
}

}  // namespace jointmae
#endif

namespace jointmae {

inline constexpr unsigned kAllLanes = 0xFFFFFFFFu;
inline constexpr int kWarpSize = 32;

template <typename T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

// Whether it is so for any lane of the warp. Also orders memory, which a vote alone does not: what lanes have read or
// written before, others may write or read after.
__device__ __forceinline__ bool any_in_warp(bool predicate) {
  const bool any = __any_sync(kAllLanes, predicate) != 0;
  __syncwarp();
  return any;
}

// The number of points of cloud b that count; a length that nobody checked (the check would wait) is cut to 1..N.
__device__ __forceinline__ int64_t length_of(const int64_t* lengths, int64_t b, int64_t N) {
  if (lengths == nullptr) return N;
  const int64_t length = lengths[b];
  return length < 1 ? 1 : length > N ? N : length;
}

// The squared distance as the contract rounds it: --fmad=false keeps multiply and add apart.
__device__ __forceinline__ float sq_distance(float ax, float ay, float az, float bx, float by, float bz) {
  const float dx = ax - bx, dy = ay - by, dz = az - bz;
  return (dx * dx + dy * dy) + dz * dz;
}

}  // namespace jointmae
