// Who does what, where threads share the work.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/isa.h"
#include "common/parallel.h"
#include "project_points/project_points.h"
#include "project_points/seen.h"

namespace jointmae {

// A few ranges per thread: scratch memory is taken once per range, and a slow thread gets fewer.
template <Isa isa>
int64_t grain(int64_t count, int num_threads) {
  return std::max<int64_t>(1, count / (4 * std::max(num_threads, 1)));
}

// Calls body(first..last) with `parts` ranges that make up [0, count), in parallel.
template <Isa isa, typename Body>
void share_out(int64_t count, int64_t parts, int num_threads, const Body& body) {
  parallel_for(parts, 1, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) body(part, Range{part * count / parts, (part + 1) * count / parts});
  });
}

// Whether there are fewer views than threads, and enough to do in each for several.
template <Isa isa>
bool few_views(const ProjectSpec& spec, int num_threads) {
  constexpr int64_t kWorthSharing = 1 << 16;  // points and pixels
  return spec.B * spec.V < num_threads && spec.N + spec.H * spec.W >= kWorthSharing;
}

}  // namespace jointmae
