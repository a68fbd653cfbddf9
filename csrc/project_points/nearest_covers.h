// The z-buffer of points with footprints, on a canvas, where infinity and -1 are empty: drawn where footprints are few,
// else by windows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common/isa.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "project_points/canvas.h"
#include "project_points/nearest_pixels.h"
#include "project_points/seen.h"

namespace jointmae {

// Draws the footprints of the points of `list`. Ties go to the lowest index because points come in order. `inside`
// [padded] is 1 in the columns of a footprint, 0 in spare ones.
template <Isa isa, typename T, int64_t kWidth, typename Index>
void draw_footprints(const Seen<isa, T>& seen, const int32_t* list, int64_t count, const Canvas<isa, T, kWidth> canvas,
                     const T* inside, T* z_min, Index* nearest) {
  using L = Lanes<isa, T>;
  const auto nowhere = L::broadcast(std::numeric_limits<T>::infinity());
  fill<isa>(z_min, std::numeric_limits<T>::infinity(), canvas.size());
  fill<isa>(nearest, Index{-1}, canvas.size());
  for (int64_t k = 0; k < count; ++k) {
    const int64_t n = list[k];
    const auto point = L::broadcast_index(static_cast<Index>(n));
    for (int64_t j = 0; j < canvas.padded(); j += L::kLanes) {
      const auto z = L::load(inside + j) > T(0) ? L::broadcast(seen.z[n]) : nowhere;
      canvas.for_each_row(seen.x[n] + j, seen.y[n], [&](int64_t, int64_t at) {
        const auto before = L::load(z_min + at);
        L::store_index(nearest + at, z < before ? point : L::load_index(nearest + at));
        L::store(z_min + at, z < before ? z : before);
      });
    }
  }
}

// The nearest point that covers a pixel has the lowest (z, index) of all points whose own pixel lies in the window of
// 2 * radius + 1 by as many around it. So points are drawn as single pixels, and then the minimum of each window is
// taken, along the row, then across the rows: work for a pixel, not for a point times its footprint.
template <Isa isa, typename T>
class Windows {
  using S = Simd<isa, T>;
  using Index = typename S::Index;

 public:
  // For at most max_rows rows of the frame at a time.
  Windows(const ProjectSpec& spec, int64_t max_rows)
      : radius_(spec.radius),
        W_(spec.W),
        H_(spec.H),
        stride_(S::round_up(spec.W + 2 * spec.radius) + S::round_up(spec.radius + 1) + S::kLanes),
        z_(std::min(max_rows + 2 * spec.radius, spec.H) * stride_),
        index_(std::min(max_rows + 2 * spec.radius, spec.H) * stride_),
        row_z_(S::round_up(spec.W)),
        row_index_(S::round_up(spec.W)) {}

  // Draws the points of `list`, all those that meet the canvas.
  template <int64_t kWidth>
  void draw(const Seen<isa, T>& seen, const int32_t* list, int64_t count, const Canvas<isa, T, kWidth> canvas, T* z_min,
            Index* nearest) {
    rows_ = {std::max<int64_t>(canvas.rows.first - radius_, 0), std::min(canvas.rows.last + radius_, H_)};
    fill<isa>(z_min, std::numeric_limits<T>::infinity(), canvas.size());  // the margins
    draw_single(seen, list, count);
    for (int64_t y = rows_.first; y < rows_.last; ++y) take_windows_along((y - rows_.first) * stride_);
    for (int64_t y = canvas.rows.first; y < canvas.rows.last; ++y) {
      take_windows_across(y);
      T* __restrict__ z = z_min + canvas.row(y);
      Index* __restrict__ index = nearest + canvas.row(y);
      for (int64_t x = 0; x < W_; ++x) {
        z[x] = row_z_.get()[x];
        index[x] = row_index_.get()[x];
      }
    }
  }

 private:
  // With a margin of `radius` columns.
  void draw_single(const Seen<isa, T>& seen, const int32_t* list, int64_t count) {
    T* __restrict__ z = z_.get();
    Index* __restrict__ index = index_.get();
    fill<isa>(z, std::numeric_limits<T>::infinity(), (rows_.last - rows_.first) * stride_);
    fill<isa>(index, Index{-1}, (rows_.last - rows_.first) * stride_);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t n = list[i], p = (seen.y[n] - rows_.first) * stride_ + seen.x[n] + radius_;
      const bool nearer = seen.z[n] < z[p];
      index[p] = nearer ? static_cast<Index>(n) : index[p];
      z[p] = nearer ? seen.z[n] : z[p];
    }
  }

  // Column x of the frame gets the minimum of the window that begins there in the wider image: by windows of 1, 2, 4...
  // columns, in place, as what is read lies ahead.
  void take_windows_along(int64_t row) {
    const int64_t width = 2 * radius_ + 1;
    for (int64_t have = 1, shift; have < width; have += shift) {
      shift = std::min(have, width - have);
      for (int64_t x = row; x < row + W_ + 2 * radius_; x += S::kLanes) {
        auto z = S::load(z_.get() + x);
        auto index = S::load_index(index_.get() + x);
        lower(z, index, x + shift);
        S::store(z_.get() + x, z);
        S::store_index(index_.get() + x, index);
      }
    }
  }

  void take_windows_across(int64_t y) {
    const int64_t first = (std::max(y - radius_, rows_.first) - rows_.first) * stride_;
    const int64_t last = (std::min(y + radius_ + 1, rows_.last) - rows_.first) * stride_;
    for (int64_t x = 0; x < W_; x += S::kLanes) {
      auto z = S::load(z_.get() + first + x);
      auto index = S::load_index(index_.get() + first + x);
      for (int64_t row = first + stride_; row < last; row += stride_) lower(z, index, row + x);
      S::store(row_z_.get() + x, z);
      S::store_index(row_index_.get() + x, index);
    }
  }

  // The lower (z, index) of a vector and of that at `from`.
  void lower(typename S::Vector& z, typename S::IndexVector& index, int64_t from) const {
    const auto other = S::load(z_.get() + from);
    const auto other_index = S::load_index(index_.get() + from);
    const auto lower_index = other_index < index ? other_index : index;
    index = other < z ? other_index : (other == z ? lower_index : index);
    z = other < z ? other : z;
  }

  int64_t radius_, W_, H_, stride_;
  Range rows_{0, 0};
  Scratch<isa, T> z_;
  Scratch<isa, Index> index_;
  Scratch<isa, T> row_z_;
  Scratch<isa, Index> row_index_;
};

}  // namespace jointmae
