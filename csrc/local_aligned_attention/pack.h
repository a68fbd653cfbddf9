// Rows of tensors as matrices of float in scratch memory, and back.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/isa.h"
#include "common/simd.h"
#include "common/simd_half.h"
#include "local_aligned_attention/multiply.h"
#include "local_aligned_attention/tokens.h"

namespace jointmae {

// to [round_up(d)] = from [d] * scale, then zeros.
template <Isa isa, typename E>
void pack_row(const E* from, int64_t d, float scale, float* to) {
  using V = Simd<isa, float>;
  const auto factor = V::broadcast(scale);
  int64_t c = 0;
  for (; c + V::kLanes <= d; c += V::kLanes) V::store(to + c, load_wide<isa>(from + c) * factor);
  if (c == d) return;
  E rest[V::kLanes] = {};
  std::memcpy(rest, from + c, static_cast<std::size_t>(d - c) * sizeof(E));
  V::store(to + c, load_wide<isa>(rest) * factor);
}

// to [d] = from [round_up(d)] * scale.
template <Isa isa, typename E>
void unpack_row(const float* from, int64_t d, float scale, E* to) {
  using V = Simd<isa, float>;
  const auto factor = V::broadcast(scale);
  int64_t c = 0;
  for (; c + V::kLanes <= d; c += V::kLanes) store_narrow<isa>(to + c, V::load(from + c) * factor);
  if (c == d) return;
  E rest[V::kLanes];
  store_narrow<isa>(rest, V::load(from + c) * factor);
  std::memcpy(to + c, rest, static_cast<std::size_t>(d - c) * sizeof(E));
}

// Transposes up to kLanes rows [count, round_up(d)] into columns `at`.. of the panels [.., d, kWidth]; columns beyond
// `count` become 0.
template <Isa isa>
void transpose_rows(const float* rows, int64_t count, int64_t d, int64_t at, float* panels) {
  using V = Simd<isa, float>;
  constexpr int64_t kWidth = Tile<isa>::kWidth;
  float* to = panels + at / kWidth * kWidth * d + at % kWidth;
  for (int64_t c = 0; c < d; c += V::kLanes) {
    typename V::Vector block[V::kLanes];
    for (int64_t i = 0; i < V::kLanes; ++i) {
      block[i] = i < count ? V::load(rows + i * V::round_up(d) + c) : typename V::Vector{};
    }
    V::transpose(block);
    for (int64_t i = 0; i < V::kLanes && c + i < d; ++i) V::store(to + (c + i) * kWidth, block[i]);
  }
}

// The channels of the token at a place, counted among all tokens.
template <Isa isa, typename E>
E* row_at(const Strided& tensor, const Head& head, int64_t place) {
  return static_cast<E*>(tensor.data) + head.sample * tensor.b + head.number * tensor.h +
         token_at<isa>(head.tokens, place) * tensor.l;
}

// to [count, round_up(d)] = the rows at `places`.
template <Isa isa, typename E>
void pack_rows(const Strided& tensor, const Head& head, const KeyRange& places, int64_t d, float scale, float* to) {
  for (int64_t place = places.begin; place < places.end; ++place, to += Simd<isa, float>::round_up(d)) {
    pack_row<isa>(row_at<isa, E>(tensor, head, place), d, scale, to);
  }
}

template <Isa isa, typename E>
void unpack_rows(const float* from, const KeyRange& places, int64_t d, float scale, const Strided& tensor,
                 const Head& head) {
  for (int64_t place = places.begin; place < places.end; ++place, from += Simd<isa, float>::round_up(d)) {
    unpack_row<isa>(from, d, scale, row_at<isa, E>(tensor, head, place));
  }
}

// Where the panels of modality m begin, if those of both lie one after the other.
template <Isa isa>
int64_t panels_begin(const Tokens& tokens, int64_t m, int64_t d) {
  constexpr int64_t kWidth = Tile<isa>::kWidth;
  return m == 0 ? 0 : ceil_div<isa>(tokens.modalities[0].count, kWidth) * kWidth * d;
}

// Room for the panels of both modalities.
template <Isa isa>
int64_t panels_size(int64_t L, int64_t d) {
  return (L + 2 * Tile<isa>::kWidth) * d;
}

// Rows [L, round_up(d)] of both modalities, transposed into panels.
template <Isa isa>
void pack_panels(const float* rows, const Tokens& tokens, int64_t d, float* panels) {
  constexpr int64_t kLanes = Simd<isa, float>::kLanes;
  for (int64_t m = 0; m < 2; ++m) {
    const Modality& own = tokens.modalities[m];
    float* to = panels + panels_begin<isa>(tokens, m, d);
    for (int64_t at = 0; at < own.count; at += kLanes) {
      const float* from = rows + (own.start + at) * Simd<isa, float>::round_up(d);
      transpose_rows<isa>(from, own.count - at < kLanes ? own.count - at : kLanes, d, at, to);
    }
  }
}

}  // namespace jointmae
