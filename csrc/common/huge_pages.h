// Memory that is about to be written for the first time.
#pragma once

#include <cstdint>

namespace jointmae {

// So large a block has room for a whole huge page, wherever it begins.
inline constexpr int64_t kHugeFrom = int64_t{4} << 20;

// Asks for huge pages under a large output, as NumPy does for its arrays: large blocks come fresh from the system, and
// with pages of 4 KB the faults of writing them first take longer than the kernel. A hint for these pages alone;
// without effect below kHugeFrom bytes, where the system has none, and for no memory (null).
void ask_for_huge_pages(void* begin, int64_t num_bytes);

}  // namespace jointmae
