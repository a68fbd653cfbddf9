// Who reads each target: the lists that make the backward of a gather a gather too, in a fixed order and without
// floating-point atomics. B clouds, R sources and N targets each.
#pragma once

#include <cstdint>

#include "common/stream.h"

namespace jointmae {

// order[b, offsets[b, n] .. offsets[b, n + 1]) are the sources r with indices[b, r] = n, ascending; offsets[b, N] is
// the number of all in range. A source whose index is outside of 0..N-1 is in no list.
void inverse_index_cuda(const int64_t* indices,  // [B, R], R < 2^31
                        int32_t* offsets,        // [B, N + 1]
                        int32_t* order,          // [B, R]
                        int64_t B, int64_t R, int64_t N, const Stream& stream);

}  // namespace jointmae
