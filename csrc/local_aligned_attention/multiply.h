// Products of small matrices that lie in the cache, tile by tile in registers.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/simd.h"
#include "local_aligned_attention/ahead.h"

namespace jointmae {

// A tile is kRows rows of kVectors vectors: its sums, a row of the right factor and a number of the left one fill the
// registers (32 of AVX-512, else 16).
template <Isa isa>
struct Tile {
  static constexpr int64_t kLanes = Simd<isa, float>::kLanes;
  static constexpr int64_t kRows = 6;
  static constexpr int64_t kVectors = isa == Isa::avx512 ? 4 : 2;
  static constexpr int64_t kWidth = kVectors * kLanes;
};

// A matrix [rows, depth] and the distances of its numbers: a transposed one is read in place.
struct Left {
  const float* data;
  int64_t row, depth;
};

// A matrix [depth, columns] in panels of Tile::kWidth columns: the distances of panels, and of the rows of one. If it
// is not cut into panels the former is kWidth.
struct Right {
  const float* data;
  int64_t panel, depth;
};

template <Isa isa, int64_t rows, int64_t vectors>
void multiply_tile(const Left& a, const float* b, int64_t b_row, float* c, int64_t c_row, int64_t depth, bool add) {
  using V = Simd<isa, float>;
  typename V::Vector sums[rows][vectors], row[vectors];
#pragma GCC unroll 8
  for (int64_t r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int64_t v = 0; v < vectors; ++v) {
      sums[r][v] = add ? V::load(c + r * c_row + v * V::kLanes) : typename V::Vector{};
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
#pragma GCC unroll 8
    for (int64_t v = 0; v < vectors; ++v) row[v] = V::load(b + k * b_row + v * V::kLanes);
#pragma GCC unroll 8
    for (int64_t r = 0; r < rows; ++r) {
      const auto factor = V::broadcast(a.data[r * a.row + k * a.depth]);
#pragma GCC unroll 8
      for (int64_t v = 0; v < vectors; ++v) sums[r][v] = V::fma(factor, row[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int64_t v = 0; v < vectors; ++v) V::store(c + r * c_row + v * V::kLanes, sums[r][v]);
  }
}

template <Isa isa, int64_t rows>
void multiply_rows(int64_t vectors, const Left& a, const float* b, int64_t b_row, float* c, int64_t c_row,
                   int64_t depth, bool add) {
  if constexpr (Tile<isa>::kVectors == 4) {
    if (vectors == 4) return multiply_tile<isa, rows, 4>(a, b, b_row, c, c_row, depth, add);
    if (vectors == 3) return multiply_tile<isa, rows, 3>(a, b, b_row, c, c_row, depth, add);
  }
  if (vectors == 2) return multiply_tile<isa, rows, 2>(a, b, b_row, c, c_row, depth, add);
  multiply_tile<isa, rows, 1>(a, b, b_row, c, c_row, depth, add);
}

// c [rows, vectors] = a * b, or c += a * b: of b the vectors `first` and on. Tiles do not change the order of a sum.
template <Isa isa>
void multiply(const Left& a, const Right& b, float* c, int64_t c_row, int64_t rows, int64_t first, int64_t vectors,
              int64_t depth, bool add, Ahead<isa>& ahead) {
  using T = Tile<isa>;
  const int64_t tiles = (rows + T::kRows - 1) / T::kRows;
  for (int64_t v = first, end = first + vectors; v < end;) {
    const int64_t panel = v / T::kVectors, panel_end = (panel + 1) * T::kVectors;
    const int64_t some = (panel_end < end ? panel_end : end) - v;
    const float* from = b.data + panel * b.panel + (v - panel * T::kVectors) * T::kLanes;
    float* to = c + (v - first) * T::kLanes;
    for (int64_t tile = 0; tile < tiles; ++tile) {  // the rows are dealt evenly: a tile of one row is slow
      const int64_t r = tile * rows / tiles, count = (tile + 1) * rows / tiles - r;
      ahead.step();
      const Left part{a.data + r * a.row, a.row, a.depth};
      float* at = to + r * c_row;
      switch (count) {
        case 6:
          multiply_rows<isa, 6>(some, part, from, b.depth, at, c_row, depth, add);
          break;
        case 5:
          multiply_rows<isa, 5>(some, part, from, b.depth, at, c_row, depth, add);
          break;
        case 4:
          multiply_rows<isa, 4>(some, part, from, b.depth, at, c_row, depth, add);
          break;
        case 3:
          multiply_rows<isa, 3>(some, part, from, b.depth, at, c_row, depth, add);
          break;
        case 2:
          multiply_rows<isa, 2>(some, part, from, b.depth, at, c_row, depth, add);
          break;
        default:
          multiply_rows<isa, 1>(some, part, from, b.depth, at, c_row, depth, add);
      }
    }
    v += some;
  }
}

}  // namespace jointmae
