#include <atomic>
#include <cstring>
#include <type_traits>

#include "all_finite/all_finite.h"
#include "common/parallel.h"

namespace jointmae {
namespace {

template <Isa isa, typename T>
bool all_finite(const T* values, int64_t count) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  constexpr Bits kExponent = sizeof(T) == 4 ? static_cast<Bits>(0xFFu) << 23 : static_cast<Bits>(0x7FFu) << 52;
  Bits found = 0;
#pragma omp simd reduction(| : found)
  for (int64_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, values + i, sizeof bits);
    found |= (bits & kExponent) == kExponent ? 1 : 0;
  }
  return found == 0;
}

}  // namespace

template <Isa isa, typename T>
bool all_finite_cpu(const T* values, int64_t count, int num_threads) {
  constexpr int64_t kGrain = 1 << 18;  // fewer values are not worth a second thread
  std::atomic<int> found{0};
  parallel_for(count, kGrain, num_threads, [&](int64_t begin, int64_t end) {
    if (!all_finite<isa>(values + begin, end - begin)) found = 1;
  });
  return found == 0;
}

template bool all_finite_cpu<kIsa, float>(const float*, int64_t, int);
template bool all_finite_cpu<kIsa, double>(const double*, int64_t, int);

}  // namespace jointmae
