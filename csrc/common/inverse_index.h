// Who reads each target: the lists that make the backward of a gather a gather too, in a fixed order and without
// floating-point atomics. B clouds, R sources and N targets each.
#pragma once

#include <cstdint>

#include "common/stream.h"

namespace jointmae {

// order[b, offsets[b, n] .. offsets[b, n + 1]) are the sources r with indices[b, r] = n, ascending; offsets[b, N] is
// the number of all that are in a list. A source whose index is outside of 0..N-1 is in none.
struct InverseIndex {
  const int32_t* offsets;  // [B, N + 1]
  const int32_t* order;    // [B, R]
};

// How many int32 `workspace` has room for; the lists lie there too.
int64_t inverse_index_size(int64_t B, int64_t R, int64_t N);

InverseIndex inverse_index_cuda(const int64_t* indices,  // [B, R], R < 2^31
                                const int64_t* lengths,  // [B] or null: only the first lengths[b] sources count
                                int32_t* workspace, int64_t B, int64_t R, int64_t N, const Stream& stream);

}  // namespace jointmae
