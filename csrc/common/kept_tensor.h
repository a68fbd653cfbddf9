// New tensors in memory that earlier ones gave back.
#pragma once

#include <cstdint>

#include "common/dlpack.h"

namespace jointmae {

// An uninitialised tensor of at least one element, one row after the other. Its deleter gives the memory back
// (kept_memory.h), from any thread. Throws std::bad_alloc.
DLManagedTensor* new_kept_tensor(const int64_t* shape, int32_t num_dims, DLDataType dtype);

}  // namespace jointmae
