// The look for NaN and infinity that ops take before they trust their input on the CPU.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace jointmae {

// True if none of `count` values is NaN or infinite. T is float or double.
template <Isa isa, typename T>
bool all_finite_cpu(const T* values, int64_t count, int num_threads);

}  // namespace jointmae
