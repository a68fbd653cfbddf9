#include "common/finite.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "common/parallel.h"

namespace jointmae {
namespace {

constexpr int64_t kBlock = 1 << 18;  // values per range: below, a second thread costs more than it saves

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline uint64_t bits_of(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline constexpr uint32_t exponent_of(float) { return 0x7f800000u; }
inline constexpr uint64_t exponent_of(double) { return 0x7ff0000000000000u; }

}  // namespace

template <typename T>
bool all_finite(const T* values, int64_t count, int num_threads) {
  std::atomic<bool> finite{true};
  parallel_for(count, kBlock, num_threads, [&](int64_t begin, int64_t end) {
    const auto exponent = exponent_of(T{});  // all ones in NaN and infinity alone
    int32_t bad = 0;
#pragma omp simd reduction(| : bad)
    for (int64_t i = begin; i < end; ++i) bad |= (bits_of(values[i]) & exponent) == exponent;
    if (bad) finite = false;
  });
  return finite;
}

template bool all_finite<float>(const float*, int64_t, int);
template bool all_finite<double>(const double*, int64_t, int);

}  // namespace jointmae
