#include "common/huge_pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace jointmae {

void ask_for_huge_pages(void* begin, int64_t num_bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (!begin || num_bytes < kHugeFrom) return;
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + static_cast<uintptr_t>(num_bytes)) / page * page;
  (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a kernel without them refuses
#else
  (void)begin;
  (void)num_bytes;
#endif
}

}  // namespace jointmae
