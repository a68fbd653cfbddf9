// Memory in large pages.
#pragma once

#include <cstdint>

namespace jointmae {

// Asks for large pages behind `memory`, where nothing has been written to it yet and the system has some to spare: a
// large output costs more time for the pages that appear under it than for what is written, and these are 512 times
// fewer. Nothing but time depends on it.
void prefer_large_pages(void* memory, int64_t bytes);

}  // namespace jointmae
