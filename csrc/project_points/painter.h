// The images of points with footprints.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/isa.h"
#include "common/scratch.h"
#include "project_points/bands.h"
#include "project_points/blend.h"
#include "project_points/canvas.h"
#include "project_points/footprints.h"
#include "project_points/nearest_covers.h"
#include "project_points/project_points.h"
#include "project_points/scene.h"
#include "project_points/seen.h"

namespace jointmae {

// Draws rows of views, band after band.
template <Isa isa, typename T, int64_t kWidth>
class Painter {
 public:
  explicit Painter(const ProjectSpec& spec)
      : spec_(spec),
        blends_(spec.mode != ProjectMode::zbuffer),
        bands_(spec, band_height(spec)),
        canvas_(spec, {0, std::min(bands_.height(), spec.H)}),
        windows_(spec, dense() ? canvas_.rows.last : 0),
        footprints_(spec, canvas_),
        numbers_(3 * canvas_.size()),
        nearest_(canvas_.size()) {}

  // Returns how many points were dropped.
  int64_t draw(const Seen<isa, T>& seen, const Range& rows, const Image<isa, T>& image) {
    const int64_t dropped = bands_.sort(seen, spec_.N, rows);
    for (int64_t band = 0; band < bands_.count(); ++band) {
      canvas_.rows = bands_.rows(band);
      draw_band(seen, bands_.list(band), bands_.size(band), image);
    }
    return dropped;
  }

 private:
  static int64_t band_height(const ProjectSpec& spec) {
    constexpr int64_t kBytes = 192 << 10;  // of the second cache
    const int64_t row_bytes = (spec.W + 2 * spec.radius) * (3 * sizeof(T) + sizeof(int32_t));
    return std::max<int64_t>(kBytes / row_bytes, 1);
  }
  // Whether footprints lie many times over each other.
  bool dense() const { return spec_.N * canvas_.width() * canvas_.width() > 4 * spec_.H * spec_.W; }

  void draw_band(const Seen<isa, T>& seen, const int32_t* list, int64_t count, const Image<isa, T>& image) {
    T *const z_min = numbers_.get(), *const weights = z_min + canvas_.size(), *const sums = weights + canvas_.size();
    if (dense()) {
      windows_.draw(seen, list, count, canvas_, z_min, nearest_.get());
    } else {
      draw_footprints(seen, list, count, canvas_, footprints_.inside(), z_min, nearest_.get());
    }
    for (int64_t y = canvas_.rows.first; y < canvas_.rows.last; ++y) write_nearest_row(y, z_min, image);
    if (!blends_) return;
    fill<isa>(weights, T(0), 2 * canvas_.size());
    if (spec_.mode == ProjectMode::soft) {
      T* const exponents = z_min;  // in their place: nobody reads them any more
      for (int64_t y = canvas_.rows.first; y < canvas_.rows.last; ++y) {
        write_exponents(seen, nearest_.get() + canvas_.row(y), exponents + canvas_.row(y));
      }
      add_soft(seen, list, count, canvas_, exponents, footprints_, weights, sums);
    } else {
      add_harmonic(seen, list, count, canvas_, footprints_.inside(), weights, sums);
    }
    for (int64_t y = canvas_.rows.first; y < canvas_.rows.last; ++y) {
      const int64_t at = y * spec_.W, from = canvas_.row(y);
      write_blended_row<isa>(weights + from, sums + from, spec_.W, nearest_.get() + from, seen.per_mantissa,
                             static_cast<T>(spec_.background), image.depth + at,
                             image.coverage ? image.coverage + at : nullptr, image.weight_sum + at);
    }
  }

  void write_nearest_row(int64_t y, const T* z_min, const Image<isa, T>& image) const {
    const int64_t W = spec_.W;
    const T* __restrict__ z = z_min + canvas_.row(y);
    const auto* __restrict__ winner = nearest_.get() + canvas_.row(y);
    int32_t* __restrict__ index = image.index + y * W;
    T* __restrict__ depth = image.depth + y * W;
    for (int64_t x = 0; x < W; ++x) index[x] = static_cast<int32_t>(winner[x]);
    if (blends_) return;
#pragma omp simd
    for (int64_t x = 0; x < W; ++x) depth[x] = winner[x] >= 0 ? z[x] : T(0);
  }

  // Of a row, in runs; where nothing is covered any will do.
  template <typename Index>
  void write_exponents(const Seen<isa, T>& seen, const Index* __restrict__ winner, T* __restrict__ exponents) const {
    constexpr int64_t kRun = 16;
    const T* __restrict__ exponent = seen.exponent;
    for (int64_t x = 0; x < spec_.W; x += kRun) {
      const int64_t count = std::min(kRun, spec_.W - x);
      Index all = -1;
#pragma omp simd reduction(& : all)
      for (int64_t i = 0; i < count; ++i) all &= winner[x + i];
      if (all == -1) continue;  // all of them are
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) exponents[x + i] = exponent[winner[x + i] > 0 ? winner[x + i] : 0];
    }
  }

  const ProjectSpec& spec_;
  bool blends_;
  Bands<isa> bands_;
  Canvas<isa, T, kWidth> canvas_;
  Windows<isa, T> windows_;
  Footprints<isa, T, kWidth> footprints_;
  Scratch<isa, T> numbers_;
  Scratch<isa, typename Lanes<isa, T>::Index> nearest_;
};

}  // namespace jointmae
