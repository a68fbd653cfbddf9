// What rows of scores need beside products.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/isa.h"
#include "common/simd.h"
#include "local_aligned_attention/tokens.h"

namespace jointmae {

// Scores are powers of 2 here, so that exponentials are.
template <Isa isa>
float score_scale(int64_t d) {
  return 1.44269504f / std::sqrt(static_cast<float>(d));
}

// Which of the keys `from`.. of a vector are outside of `range`.
template <Isa isa>
typename Simd<isa, float>::IndexVector outside(int64_t from, const KeyRange& range) {
  using V = Simd<isa, float>;
  const auto key = V::ascending() + V::broadcast_index(static_cast<int32_t>(from));
  return (key < V::broadcast_index(static_cast<int32_t>(range.begin))) |
         (key >= V::broadcast_index(static_cast<int32_t>(range.end)));
}

// Scores of vectors of keys `from`.. that are outside of `range` become -inf.
template <Isa isa>
void keep(const KeyRange& range, int64_t from, int64_t vectors, float* scores) {
  using V = Simd<isa, float>;
  const auto never = V::broadcast(-INFINITY);
  for (int64_t v = 0; v < vectors; ++v, scores += V::kLanes) {
    V::store(scores, outside<isa>(from + v * V::kLanes, range) ? never : V::load(scores));
  }
}

// Keys beyond the last whole vector that are no more than this are single pairs with each query: a vector would be
// mostly empty.
inline constexpr int64_t kFewKeys = 2;

// Keys of the other modality that a query reads on average are single pairs, up to this number.
inline constexpr int64_t kFewPairs = 2;

// The keys 0 .. count that are worth whole vectors.
template <Isa isa>
int64_t in_vectors(int64_t count) {
  const int64_t rest = count % Simd<isa, float>::kLanes;
  return rest <= kFewKeys ? count - rest : count;
}

// The vectors that hold keys of a range.
template <Isa isa>
KeyRange vectors_of(const KeyRange& keys) {
  constexpr int64_t kLanes = Simd<isa, float>::kLanes;
  return {keys.begin / kLanes, ceil_div<isa>(keys.end, kLanes)};
}

}  // namespace jointmae
