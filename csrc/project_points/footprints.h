// The Gaussian weights of points' footprints: exp(-dx^2 / 2 sigma^2) of their columns, exp(-dy^2 / 2 sigma^2) of their
// rows. Blocks of points, all exponents of a block side by side, so that every lane of every exponential function
// counts.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/exponential.h"
#include "common/isa.h"
#include "common/scratch.h"
#include "project_points/canvas.h"
#include "project_points/nearest_pixels.h"
#include "project_points/seen.h"

namespace jointmae {

template <Isa isa, typename T, int64_t kWidth>
class Footprints {
  using L = Lanes<isa, T>;
  using Canvas = jointmae::Canvas<isa, T, kWidth>;

 public:
  Footprints(const ProjectSpec& spec, const Canvas canvas)
      : capacity_(std::max<int64_t>(kExponents / (2 * canvas.width()), 1)),
        width_(canvas.width()),
        gaussian_scale_(static_cast<T>(-0.5 / (spec.sigma * spec.sigma))),
        inside_(canvas.padded()),
        columns_(canvas.padded()),
        offsets_(2 * width_ * capacity_ + canvas.padded()),
        gaussians_(2 * width_ * capacity_ + canvas.padded()) {
    for (int64_t j = 0; j < canvas.padded(); ++j) {
      columns_[j] = static_cast<T>(j);
      inside_[j] = j < width_ ? T(1) : T(0);
    }
    fill<isa>(gaussians_.get(), T(0), 2 * width_ * capacity_ + canvas.padded());  // what a spare lane reads is finite
  }

  int64_t capacity() const { return capacity_; }
  const T* inside() const { return inside_.get(); }  // [padded], 1 in the columns of a footprint, 0 in spare ones

  // Computes the weights of `count` points, at most `capacity`.
  void compute(const Seen<isa, T>& seen, const int32_t* list, int64_t count, const Canvas canvas) {
    for (int64_t k = 0; k < count; ++k) write_offsets(seen, list[k], canvas, offsets_.get() + 2 * width() * k);
    const T* __restrict__ offset = offsets_.get();
    T* __restrict__ gaussian = gaussians_.get();
    const T scale = gaussian_scale_;
    const int64_t num_offsets = 2 * width() * count;
#pragma omp simd
    for (int64_t i = 0; i < num_offsets; ++i) gaussian[i] = exp_negative<isa>((offset[i] * offset[i]) * scale);
  }

  // Of point k of the block. What lies behind the last column is of something else, but finite.
  const T* dx(int64_t k) const { return offsets_.get() + 2 * width() * k; }  // [width], pixels' centres to (u, v)
  const T* dy(int64_t k) const { return dx(k) + width(); }
  const T* wx(int64_t k) const { return gaussians_.get() + 2 * width() * k; }
  const T* wy(int64_t k) const { return wx(k) + width(); }

 private:
  int64_t width() const { return kWidth > 0 ? kWidth : width_; }

  static constexpr int64_t kExponents = 1024;  // of a block: they stay in the first cache

  // [2, width]: the columns', then the rows'. The spare lanes of a write are overwritten by the next one.
  void write_offsets(const Seen<isa, T>& seen, int64_t n, const Canvas canvas, T* out) const {
    const T left = static_cast<T>(seen.x[n] - canvas.radius()) + T(0.5), u = seen.u[n];
    const T top = static_cast<T>(seen.y[n] - canvas.radius()) + T(0.5), v = seen.v[n];
    write_distances(left, u, canvas, out);
    write_distances(top, v, canvas, out + canvas.width());
  }
  void write_distances(T first, T from, const Canvas canvas, T* out) const {
    for (int64_t j = 0; j < canvas.padded(); j += L::kLanes) {
      L::store(out + j, (L::broadcast(first) + L::load(columns_.get() + j)) - L::broadcast(from));
    }
  }

  int64_t capacity_, width_;
  T gaussian_scale_;
  Scratch<isa, T> inside_, columns_, offsets_, gaussians_;
};

}  // namespace jointmae
