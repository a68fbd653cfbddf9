// Memory that is about to be written for the first time.
#pragma once

#include <cstdint>

namespace jointmae {

// Asks for huge pages under a large output, as NumPy does for its arrays: large blocks come fresh from the system, and
// with pages of 4 KB the faults of writing them first take longer than the kernel. A hint for these pages alone;
// without effect where the system has none, or for no memory (null).
void ask_for_huge_pages(void* begin, int64_t num_bytes);

}  // namespace jointmae
