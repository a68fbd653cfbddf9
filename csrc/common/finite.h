// Are all numbers of an array finite? The check that every op makes of its input, so it must cost next to nothing.
#pragma once

#include <cstdint>

namespace jointmae {

// False if any of values[0..count) is NaN or infinite. T is float or double.
template <typename T>
bool all_finite(const T* values, int64_t count, int num_threads);

}  // namespace jointmae
