// Is every value a number?
#pragma once

#include <cstdint>

namespace jointmae {

// True if none of the values is NaN or infinite. T is float or double.
template <typename T>
bool all_finite(const T* values, int64_t count, int num_threads);

}  // namespace jointmae
