// What footprints are drawn on.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/isa.h"
#include "common/simd.h"
#include "project_points/project_points.h"
#include "project_points/seen.h"

namespace jointmae {

// The columns of a footprint that are handled together; spare ones count as 0. Eight, of which the default radius uses
// five, or what a vector holds.
template <Isa isa, typename T>
using Lanes = Simd<isa, T, (kVectorBytes<isa> < 8 * sizeof(T) ? kVectorBytes<isa> : 8 * sizeof(T))>;

// Some rows of the frame with a margin of `radius` columns left and right, and spare ones, so that of footprints only
// the rows are clipped. kWidth is the width of footprints, so that loops over them are unrolled, or 0 for any.
template <Isa isa, typename T, int64_t kWidth>
class Canvas {
  int64_t radius_;

 public:
  Range rows;
  int64_t stride;  // of a row

  Canvas(const ProjectSpec& spec, const Range& some_rows)
      : radius_(spec.radius), rows(some_rows), stride(spec.W - 1 + padded()) {}

  int64_t radius() const { return kWidth > 0 ? kWidth / 2 : radius_; }
  int64_t width() const { return 2 * radius() + 1; }                   // a footprint has width x width pixels
  int64_t padded() const { return Lanes<isa, T>::round_up(width()); }  // in whole groups of lanes
  int64_t size() const { return (rows.last - rows.first) * stride; }
  int64_t row(int64_t y) const { return (y - rows.first) * stride + radius(); }  // where row y of the frame begins

  // Calls body(i, at) for the rows i on the canvas of the footprint of a point in pixel (x, y), which begin at `at`.
  template <typename Body>
  void for_each_row(int64_t x, int64_t y, const Body& body) const {
    const int64_t top = y - radius() - rows.first, bottom = rows.last - rows.first - top;
    int64_t at = top * stride + x;
    if (top >= 0 && bottom >= width()) {
      for (int64_t i = 0; i < width(); ++i, at += stride) body(i, at);
    } else {
      const int64_t first = std::max<int64_t>(-top, 0);
      at += first * stride;
      for (int64_t i = first; i < std::min(bottom, width()); ++i, at += stride) body(i, at);
    }
  }
};

}  // namespace jointmae
