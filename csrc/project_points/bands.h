// Points sorted by the rows of the frame, so that what they draw on stays in the first cache. N points, H rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/isa.h"
#include "common/scratch.h"
#include "project_points/nearest_pixels.h"
#include "project_points/seen.h"

namespace jointmae {

// Lists the points that were not dropped by their row, those of a row in their order; returns how many. `starts` has
// room for H + 1 numbers.
template <Isa isa, typename T>
int64_t list_by_row(const Seen<isa, T>& seen, int64_t count, int64_t H, int32_t* __restrict__ starts,
                    int32_t* __restrict__ list) {
  fill<isa>(starts, int32_t{0}, H + 1);
  for (int64_t n = 0; n < count; ++n) ++starts[seen.y[n] + 1];  // those dropped have row -1
  const int32_t dropped = starts[0];
  starts[0] = 0;
  for (int64_t y = 1; y <= H; ++y) starts[y] += starts[y - 1];
  for (int64_t n = 0; n < count; ++n) {
    if (seen.y[n] >= 0) list[starts[seen.y[n]]++] = static_cast<int32_t>(n);
  }
  return count - dropped;
}

// The points whose footprints meet bands of rows, in their order for each band.
template <Isa isa>
class Bands {
 public:
  // Bands of `height` rows, at least those of a footprint, so that no footprint meets more than two of them.
  Bands(const ProjectSpec& spec, int64_t height)
      : radius_(spec.radius),
        height_(std::max(height, 2 * spec.radius + 1)),
        band_of_row_(spec.H),
        list_(2 * spec.N),
        ends_((spec.H + height_ - 1) / height_ + 1) {}

  // Sorts the points of a view into the bands of `rows`; returns how many were dropped.
  template <typename T>
  int64_t sort(const Seen<isa, T>& seen, int64_t N, const Range& rows) {
    rows_ = rows;
    for (int64_t y = rows.first; y < rows.last; ++y) band_of_row_[y] = static_cast<int32_t>((y - rows.first) / height_);
    fill<isa>(ends_.get(), int64_t{0}, count() + 1);
    int64_t dropped = 0;
    for (int64_t n = 0; n < N; ++n) {
      dropped += seen.y[n] < 0;
      const Range bands = bands_of(seen.y[n]);
      for (int64_t band = bands.first; band < bands.last; ++band) ++ends_[band + 1];
    }
    for (int64_t band = 1; band <= count(); ++band) ends_[band] += ends_[band - 1];
    for (int64_t n = 0; n < N; ++n) {  // moves the end of the band before up to its own
      const Range bands = bands_of(seen.y[n]);
      for (int64_t band = bands.first; band < bands.last; ++band) list_[ends_[band]++] = static_cast<int32_t>(n);
    }
    return dropped;
  }

  int64_t height() const { return height_; }
  int64_t count() const { return (rows_.last - rows_.first + height_ - 1) / height_; }
  Range rows(int64_t band) const {
    const int64_t first = rows_.first + band * height_;
    return {first, std::min(first + height_, rows_.last)};
  }
  const int32_t* list(int64_t band) const { return list_.get() + begin(band); }
  int64_t size(int64_t band) const { return ends_.get()[band] - begin(band); }

 private:
  int64_t begin(int64_t band) const { return band == 0 ? 0 : ends_.get()[band - 1]; }

  // first..last - 1, none for a point that was dropped or meets no row.
  Range bands_of(int64_t y) const {
    const int64_t first = std::max(y - radius_, rows_.first), last = std::min(y + radius_, rows_.last - 1);
    if (y < 0 || first > last) return {0, 0};
    return {band_of_row_.get()[first], band_of_row_.get()[last] + 1};
  }

  int64_t radius_, height_;
  Range rows_{0, 0};
  Scratch<isa, int32_t> band_of_row_, list_;
  Scratch<isa, int64_t> ends_;  // in the list, which may hold a point twice
};

}  // namespace jointmae
