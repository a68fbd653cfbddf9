// The look for NaN and infinity that every op takes before it trusts its input on the CPU.
#pragma once

#include <cstdint>

namespace jointmae {

// True if none of `count` values is NaN or infinite. T is float or double.
template <typename T>
bool all_finite(const T* values, int64_t count, int num_threads);

}  // namespace jointmae
