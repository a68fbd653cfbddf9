// Single pairs of rows, where there are too few for products of matrices.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/simd.h"

namespace jointmae {

// A query and a key, by their places among all tokens.
struct Pair {
  int64_t query, key;
};

// Sum i of the result is that of the lanes of rows[i].
template <Isa isa>
typename Simd<isa, float>::Vector sums_of_rows(typename Simd<isa, float>::Vector (&rows)[Simd<isa, float>::kLanes]) {
  Simd<isa, float>::transpose(rows);
  for (int64_t i = 1; i < Simd<isa, float>::kLanes; ++i) rows[0] += rows[i];
  return rows[0];
}

// The products of row `query` of a with row `key` of b for up to kLanes pairs; rows are `width` numbers apart.
template <Isa isa>
typename Simd<isa, float>::Vector products_of(const Pair* pairs, int64_t count, const float* a, const float* b,
                                              int64_t width) {
  using V = Simd<isa, float>;
  typename V::Vector sums[V::kLanes] = {};
  for (int64_t i = 0; i < count; ++i) {
    const float *row_a = a + pairs[i].query * width, *row_b = b + pairs[i].key * width;
    auto sum = V::load(row_a) * V::load(row_b);
    for (int64_t c = V::kLanes; c < width; c += V::kLanes) sum = V::fma(V::load(row_a + c), V::load(row_b + c), sum);
    sums[i] = sum;
  }
  return sums_of_rows<isa>(sums);
}

// The products of kLanes rows of a with the row b.
template <Isa isa>
typename Simd<isa, float>::Vector products_of_rows(const float* a, const float* b, int64_t width) {
  using V = Simd<isa, float>;
  typename V::Vector sums[V::kLanes];
#pragma GCC unroll 16
  for (int64_t i = 0; i < V::kLanes; ++i) sums[i] = V::load(a + i * width) * V::load(b);
  for (int64_t c = V::kLanes; c < width; c += V::kLanes) {
    const auto factor = V::load(b + c);
#pragma GCC unroll 16
    for (int64_t i = 0; i < V::kLanes; ++i) sums[i] = V::fma(V::load(a + i * width + c), factor, sums[i]);
  }
  return sums_of_rows<isa>(sums);
}

// to [width] += from * weight.
template <Isa isa>
void add_row(const float* from, float weight, int64_t width, float* to) {
  using V = Simd<isa, float>;
  const auto factor = V::broadcast(weight);
  for (int64_t c = 0; c < width; c += V::kLanes) V::store(to + c, V::fma(factor, V::load(from + c), V::load(to + c)));
}

}  // namespace jointmae
