// Memory for large results, which is kept when a result is given back.
#pragma once

#include <cstdint>

namespace jointmae {

// What is large comes fresh from the system each time, and the faults of writing its pages first take longer than most
// kernels here; so the memory of a result is kept for the next one whose size is the same when rounded up to 2 MiB. At
// most kKeptBytes are, those given back last.
#if defined(__SANITIZE_ADDRESS__)
inline constexpr int64_t kKeptBytes = 0;  // AddressSanitizer must see what is freed, and where a result ends
#else
inline constexpr int64_t kKeptBytes = int64_t{256} << 20;
#endif

// Uninitialised memory for num_bytes >= 1, aligned to 2 MiB. Throws std::bad_alloc.
void* take_memory(int64_t num_bytes);

// `memory` is from take_memory(num_bytes).
void give_back_memory(void* memory, int64_t num_bytes);

// How many bytes are kept and not in use.
int64_t kept_bytes();

}  // namespace jointmae
