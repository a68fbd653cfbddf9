#include "common/finite.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <type_traits>

#include "common/parallel.h"

namespace jointmae {

template <typename T>
bool all_finite(const T* values, int64_t count, int num_threads) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  constexpr Bits kExponent = sizeof(T) == 4 ? static_cast<Bits>(0xFFu) << 23 : static_cast<Bits>(0x7FFu) << 52;
  constexpr int64_t kGrain = 1 << 18;  // fewer values are not worth a second thread
  std::atomic<bool> finite{true};
  parallel_for(count, kGrain, num_threads, [&](int64_t begin, int64_t end) {
    Bits found = 0;  // bit by bit: integers, so that the compiler's vectors need no permission to reorder
    for (int64_t i = begin; i < end; ++i) {
      Bits bits;
      std::memcpy(&bits, values + i, sizeof bits);
      found |= (bits & kExponent) == kExponent ? 1 : 0;
    }
    if (found) finite = false;
  });
  return finite;
}

template bool all_finite<float>(const float*, int64_t, int);
template bool all_finite<double>(const double*, int64_t, int);

}  // namespace jointmae
