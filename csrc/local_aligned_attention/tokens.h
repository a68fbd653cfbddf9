// Who reads whom: the tokens of a sample by modality and cell. Places count inside a modality here.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/simd.h"
#include "local_aligned_attention/local_aligned_attention.h"

namespace jointmae {

struct KeyRange {
  int64_t begin, end;
};

template <Isa isa>
int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Part i of `range` cut evenly into `parts`.
template <Isa isa>
KeyRange part_of(const KeyRange& range, int64_t i, int64_t parts) {
  const int64_t count = range.end - range.begin;
  return {range.begin + i * count / parts, range.begin + (i + 1) * count / parts};
}

struct Modality {
  int64_t start, count;  // its first place among all tokens, and how many it has
  bool reads_all;        // also of the other modality
};

// The tokens of one sample. Without an order all tokens are of one modality, and the other has none.
struct Tokens {
  const int32_t* order;  // [3, L] or null
  int64_t L;
  Modality modalities[2];
};

struct Head {
  Tokens tokens;
  int64_t sample, number;  // of B, of h
};

// Head i of B * h.
template <Isa isa>
Head head_at(const int32_t* order, const AttentionSpec& spec, int64_t i) {
  const int64_t b = i / spec.h, L = spec.L, n = spec.num_3d;
  if (!order) return {{nullptr, L, {{0, L, true}, {L, 0, true}}}, b, i % spec.h};
  return {{order + b * 3 * L, L, {{0, n, spec.global_3d}, {n, L - n, spec.global_2d}}}, b, i % spec.h};
}

template <Isa isa>
int64_t token_at(const Tokens& tokens, int64_t place) {
  return tokens.order ? tokens.order[place] : place;
}

// The places of the other modality that the token at a place of modality m reads.
template <Isa isa>
KeyRange read_by(const Tokens& tokens, int64_t m, int64_t place) {
  const Modality &own = tokens.modalities[m], &other = tokens.modalities[1 - m];
  if (own.reads_all) return {0, other.count};
  const int32_t* first = tokens.order + tokens.L + own.start + place;
  return {first[0] - other.start, first[tokens.L] - other.start};
}

// The smallest range that holds those of all `rows`.
template <Isa isa>
KeyRange read_by_any(const Tokens& tokens, int64_t m, const KeyRange& rows) {
  KeyRange all{0, 0};
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const KeyRange range = read_by<isa>(tokens, m, row);
    if (range.begin >= range.end) continue;
    const bool first = all.begin == all.end;
    all.begin = first || range.begin < all.begin ? range.begin : all.begin;
    all.end = first || range.end > all.end ? range.end : all.end;
    if (tokens.modalities[m].reads_all) break;
  }
  return all;
}

// How many keys of the other modality the queries `rows` of modality m read, all together.
template <Isa isa>
int64_t pairs_of(const Tokens& tokens, int64_t m, const KeyRange& rows) {
  int64_t pairs = 0;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const KeyRange range = read_by<isa>(tokens, m, row);
    pairs += range.end - range.begin;
  }
  return pairs;
}

}  // namespace jointmae
