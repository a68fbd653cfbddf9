// The only place that knows of threads.
#pragma once

#include <cstdint>
#include <functional>

namespace jointmae {

// Calls body(begin, end) on disjoint ranges of at most `grain` items that together cover [0, n), on the caller and up
// to num_threads - 1 sleeping helpers. Which thread gets which range is open, so a body may write only what its range
// owns. Helpers sleep on a condition variable (they never spin against torch's threads), are made when first needed
// and are forgotten in a forked child. Any number of callers may be inside at once. An exception of a body reaches the
// caller once all ranges that had begun are done.
void parallel_for(int64_t n, int64_t grain, int num_threads, const std::function<void(int64_t, int64_t)>& body);

}  // namespace jointmae
