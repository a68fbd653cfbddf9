// A thread owns a head of a sample: it brings the tokens into the order of their cells, so that what a few queries read
// of the other modality is a short run of keys beside all of their own, and both are products of small matrices.
#include "common/parallel.h"
#include "local_aligned_attention/backward.h"
#include "local_aligned_attention/forward.h"
#include "local_aligned_attention/local_aligned_attention.h"
#include "local_aligned_attention/order.h"

namespace jointmae {
namespace {

// Heads that a thread takes at a time: several, that share scratch memory and wake nobody for little work.
template <Isa isa>
int64_t heads_at_a_time(const AttentionSpec& spec, int num_threads) {
  const int64_t even = spec.B * spec.h / (8 * static_cast<int64_t>(num_threads));
  const int64_t enough = (int64_t{1} << 18) / (spec.L * spec.L * spec.d + 1) + 1;
  return even > enough ? even : enough;
}

}  // namespace

template <Isa isa>
void local_aligned_attention_order_cpu(const int32_t* cell, int32_t* order, int64_t B, int64_t L, int64_t num_3d,
                                       int num_threads) {
  parallel_for(B, 1024 / (L + 1) + 1, num_threads, [=](int64_t begin, int64_t end) {
    Scratch<isa, int64_t> keys(2 * L);
    for (int64_t b = begin; b < end; ++b) {
      const int32_t* cells = cell + b * L;
      int32_t *tokens = order + b * 3 * L, *first = tokens + L, *last = first + L;
      sort_by_cell<isa>(cells, 0, num_3d, keys.get(), tokens);
      sort_by_cell<isa>(cells, num_3d, L, keys.get(), tokens);
      match_cells<isa>(cells, tokens, 0, num_3d, num_3d, L, first, last);
      match_cells<isa>(cells, tokens, num_3d, L, 0, num_3d, first, last);
    }
  });
}

template <Isa isa, typename E>
void local_aligned_attention_cpu(const Strided& q, const Strided& k, const Strided& v, const int32_t* order,
                                 const Strided& out, float* lse, const AttentionSpec& spec, int num_threads) {
  parallel_for(spec.B * spec.h, heads_at_a_time<isa>(spec, num_threads), num_threads, [&](int64_t begin, int64_t end) {
    Forward<isa, E> forward(q, k, v, out, lse, spec);
    for (int64_t i = begin; i < end; ++i) forward.run(head_at<isa>(order, spec, i));
  });
}

template <Isa isa, typename E>
void local_aligned_attention_backward_cpu(const Strided& grad, const Strided& q, const Strided& k, const Strided& v,
                                          const Strided& out, const float* lse, const int32_t* order, const Strided& dq,
                                          const Strided& dk, const Strided& dv, const AttentionSpec& spec,
                                          int num_threads) {
  parallel_for(spec.B * spec.h, heads_at_a_time<isa>(spec, num_threads), num_threads, [&](int64_t begin, int64_t end) {
    Backward<isa, E> backward(grad, q, k, v, out, lse, dq, dk, dv, spec);
    for (int64_t i = begin; i < end; ++i) backward.run(head_at<isa>(order, spec, i));
  });
}

#define INSTANTIATE(E)                                                                                               \
  template void local_aligned_attention_cpu<kIsa, E>(const Strided&, const Strided&, const Strided&, const int32_t*, \
                                                     const Strided&, float*, const AttentionSpec&, int);             \
  template void local_aligned_attention_backward_cpu<kIsa, E>(                                                       \
      const Strided&, const Strided&, const Strided&, const Strided&, const Strided&, const float*, const int32_t*,  \
      const Strided&, const Strided&, const Strided&, const AttentionSpec&, int);

template void local_aligned_attention_order_cpu<kIsa>(const int32_t*, int32_t*, int64_t, int64_t, int64_t, int);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
INSTANTIATE(Float16)

}  // namespace jointmae
