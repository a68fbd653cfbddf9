#include "common/finite.h"

#include <atomic>

#include "common/parallel.h"

namespace jointmae {
namespace {

constexpr int64_t kRange = 1 << 16;

// x * 0 is 0 for a finite x and NaN for any other, and a sum with a NaN in it is NaN.
template <typename T>
bool range_finite(const T* values, int64_t count) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += values[i] * T{0};
  return sum == T{0};
}

}  // namespace

template <typename T>
bool all_finite(const T* values, int64_t count, int num_threads) {
  std::atomic<bool> finite{true};
  parallel_for(count, kRange, num_threads, [&](int64_t begin, int64_t end) {
    if (!range_finite(values + begin, end - begin)) finite = false;
  });
  return finite;
}

template bool all_finite<float>(const float*, int64_t, int);
template bool all_finite<double>(const double*, int64_t, int);

}  // namespace jointmae
