// Forward: one thread per range of rows. Backward: one thread per cloud, or per range of channels of a cloud where
// there are fewer clouds than threads.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "common/parallel.h"
#include "group/group.h"

namespace jointmae {
namespace {

constexpr int64_t kRows = 512;  // whose indices are checked, then used, while they lie in the first-level cache

template <Isa isa>
void check_indices(const int64_t* indices, int64_t count, int64_t N) {
  int64_t lowest = 0, highest = 0;
#pragma omp simd reduction(min : lowest) reduction(max : highest)
  for (int64_t i = 0; i < count; ++i) {
    lowest = indices[i] < lowest ? indices[i] : lowest;
    highest = indices[i] > highest ? indices[i] : highest;
  }
  if (lowest >= 0 && highest < N) return;
  char message[128];
  std::snprintf(message, sizeof message, "group: indices must be in [0, N=%lld), got %lld", static_cast<long long>(N),
                static_cast<long long>(lowest < 0 ? lowest : highest));
  throw std::invalid_argument(message);
}

// kBytes is the size of a row where it is known at compile time (x, y, z above all), else 0.
template <Isa isa, int64_t kBytes>
void gather(const char* features, const int64_t* indices, char* out, int64_t count, int64_t row_bytes) {
  const int64_t bytes = kBytes ? kBytes : row_bytes;
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(out + i * bytes, features + indices[i] * bytes, static_cast<std::size_t>(bytes));
  }
}

// kChannels likewise.
template <Isa isa, int64_t kChannels, typename T>
void scatter_add(const T* __restrict__ grad, const int64_t* __restrict__ indices, T* __restrict__ grad_features,
                 int64_t count, int64_t stride, int64_t num_channels) {
  const int64_t channels = kChannels ? kChannels : num_channels;
  for (int64_t i = 0; i < count; ++i) {
    const T* from = grad + i * stride;
    T* to = grad_features + indices[i] * stride;
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) to[c] += from[c];
  }
}

}  // namespace

template <Isa isa>
void group_cpu(const void* features, const int64_t* indices, void* out, int64_t B, int64_t N, int64_t R,
               int64_t row_bytes, int num_threads) {
  const int64_t chunks = (R + kRows - 1) / kRows;  // per cloud
  const int64_t grain = std::max<int64_t>(1, B * chunks / (8 * num_threads));
  parallel_for(B * chunks, grain, num_threads, [=](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t b = chunk / chunks, first = chunk % chunks * kRows, count = std::min(kRows, R - first);
      const int64_t* from = indices + b * R + first;
      const char* cloud = static_cast<const char*>(features) + b * N * row_bytes;
      char* to = static_cast<char*>(out) + (b * R + first) * row_bytes;
      check_indices<isa>(from, count, N);
      if (row_bytes == 3 * sizeof(float)) {
        gather<isa, 3 * sizeof(float)>(cloud, from, to, count, row_bytes);
      } else if (row_bytes > 0) {
        gather<isa, 0>(cloud, from, to, count, row_bytes);
      }
    }
  });
}

template <Isa isa, typename T>
void group_backward_cpu(const T* grad, const int64_t* indices, T* grad_features, int64_t B, int64_t N, int64_t R,
                        int64_t C, int num_threads) {
  if (B == 0) return;
  const int64_t num_ranges = std::clamp<int64_t>(num_threads / B, 1, std::max<int64_t>(C, 1));
  parallel_for(B * num_ranges, 1, num_threads, [=](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t b = task / num_ranges, range = task % num_ranges;
      const int64_t begin = C * range / num_ranges, end = C * (range + 1) / num_ranges;
      T* to = grad_features + b * N * C + begin;
      check_indices<isa>(indices + b * R, R, N);
      for (int64_t n = 0; n < N; ++n) std::fill(to + n * C, to + n * C + (end - begin), T(0));
      if (C == 3 && num_ranges == 1) {
        scatter_add<isa, 3>(grad + b * R * C, indices + b * R, to, R, C, C);
      } else {
        scatter_add<isa, 0>(grad + b * R * C + begin, indices + b * R, to, R, C, end - begin);
      }
    }
  });
}

template void group_cpu<kIsa>(const void*, const int64_t*, void*, int64_t, int64_t, int64_t, int64_t, int);
template void group_backward_cpu<kIsa, float>(const float*, const int64_t*, float*, int64_t, int64_t, int64_t, int64_t,
                                              int);
template void group_backward_cpu<kIsa, double>(const double*, const int64_t*, double*, int64_t, int64_t, int64_t,
                                               int64_t, int);

}  // namespace jointmae
