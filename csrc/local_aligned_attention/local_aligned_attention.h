// Attention among 3D and 2D tokens: all of one modality read each other, and those of the other one that share their
// cell. B samples, h heads, L tokens of which the first num_3d are 3D, d channels a head.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace jointmae {

struct AttentionSpec {
  int64_t B, h, L, d;
  int64_t num_3d;             // in 0..L
  bool global_2d, global_3d;  // 2D queries read all 3D keys; 3D queries read all 2D keys
};

// A tensor [B, h, L, d]; the strides count numbers, channels are one by one.
struct Strided {
  void* data;
  int64_t b, h, l;
};

// Three rows a sample: at each place the token that has it; the first place, and the one after the last, of the tokens
// of the other modality in the same cell (as many as 0 where there are none; a cell below 0 equals none). 3D tokens
// have the places 0 .. num_3d, 2D tokens those after, both by cell and then by number.
template <Isa isa>
void local_aligned_attention_order_cpu(const int32_t* cell,  // [B, L]
                                       int32_t* order,       // [B, 3, L]
                                       int64_t B, int64_t L, int64_t num_3d, int num_threads);

// out = softmax(q k^T / sqrt(d)) v over the keys that a query may read. E, of all tensors [B, h, L, d], is float,
// BFloat16 or Float16; products and sums are float. A head is one thread's, so the bits are the same for every number
// of threads, but not at every level of `Isa`.
template <Isa isa, typename E>
void local_aligned_attention_cpu(const Strided& q, const Strided& k, const Strided& v,
                                 const int32_t* order,  // as above; null where all tokens read each other
                                 const Strided& out,
                                 float* lse,  // [B, h, L], to base 2: of the sum of a row's exponentials
                                 const AttentionSpec& spec, int num_threads);

// dq, dk and dv are the gradients for the gradient `grad` of `out`.
template <Isa isa, typename E>
void local_aligned_attention_backward_cpu(const Strided& grad, const Strided& q, const Strided& k, const Strided& v,
                                          const Strided& out, const float* lse, const int32_t* order, const Strided& dq,
                                          const Strided& dk, const Strided& dv, const AttentionSpec& spec,
                                          int num_threads);

}  // namespace jointmae
