// The tokens of a sample by modality, cell and number.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace jointmae {

// Sorts keys [count] by merging runs, with room for as many in `other`; returns which of the two holds the result.
template <Isa isa>
int64_t* merge_sort(int64_t* keys, int64_t* other, int64_t count) {
  for (int64_t run = 1; run < count; run *= 2) {
    for (int64_t begin = 0; begin < count; begin += 2 * run) {
      const int64_t middle = begin + run < count ? begin + run : count;
      const int64_t end = middle + run < count ? middle + run : count;
      for (int64_t to = begin, a = begin, b = middle; to < end; ++to) {
        const bool from_a = b == end || (a < middle && keys[a] <= keys[b]);
        other[to] = from_a ? keys[a++] : keys[b++];
      }
    }
    int64_t* sorted = other;
    other = keys;
    keys = sorted;
  }
  return keys;
}

// Places begin .. end of one modality get the tokens of these numbers, by cell. Numbers must fit into 32 bits.
template <Isa isa>
void sort_by_cell(const int32_t* cell, int64_t begin, int64_t end, int64_t* keys, int32_t* order) {
  const int64_t count = end - begin;
  for (int64_t i = 0; i < count; ++i) keys[i] = int64_t{cell[begin + i]} * (int64_t{1} << 32) + begin + i;
  const int64_t* sorted = merge_sort<isa>(keys, keys + count, count);
  for (int64_t i = 0; i < count; ++i) order[begin + i] = static_cast<int32_t>(sorted[i] & 0xffffffff);
}

// For each place begin .. end the places other .. other_end of tokens in its cell: a walk along both modalities.
template <Isa isa>
void match_cells(const int32_t* cell, const int32_t* order, int64_t begin, int64_t end, int64_t other,
                 int64_t other_end, int32_t* first, int32_t* last) {
  int64_t low = other, high = other;
  for (int64_t place = begin; place < end; ++place) {
    const int32_t id = cell[order[place]];
    while (low < other_end && cell[order[low]] < id) ++low;
    high = high < low ? low : high;
    while (high < other_end && cell[order[high]] == id) ++high;
    first[place] = static_cast<int32_t>(low);
    last[place] = static_cast<int32_t>(id < 0 ? low : high);
  }
}

}  // namespace jointmae
