// The gradients of views to the points.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/scratch.h"
#include "project_points/bands.h"
#include "project_points/canvas.h"
#include "project_points/footprints.h"
#include "project_points/gradients.h"
#include "project_points/project_points.h"
#include "project_points/scene.h"
#include "project_points/seen.h"
#include "project_points/sharing.h"

namespace jointmae {

// What comes back for one view.
template <Isa isa, typename T>
DrawnView<isa, T> of_view(const DrawnView<isa, T>& all, int64_t b, const ProjectSpec& spec) {
  const int64_t at = b * spec.H * spec.W;
  return {all.grad_depth ? all.grad_depth + at : nullptr, all.grad_coverage ? all.grad_coverage + at : nullptr,
          all.depth + at, all.weight_sum + at, all.index + at};
}

// Differentiates views one after the other, with the help of other threads.
template <Isa isa, typename T, int64_t kWidth>
class Differentiator {
 public:
  Differentiator(const Scene<isa, T>& scene, int num_threads)
      : scene_(scene),
        spec_(scene.spec),
        num_threads_(num_threads),
        canvas_(spec_, {0, adds_up() ? spec_.H : 0}),
        seen_(adds_up() ? spec_.N : 0, scene.soft()),
        numbers_(3 * spec_.N),
        gradients_{numbers_.get(), numbers_.get() + spec_.N, numbers_.get() + 2 * spec_.N},
        pixel_(canvas_) {}

  // grad [N, 3]
  void differentiate(int64_t view, const DrawnView<isa, T>& drawn, T* grad) {
    fill<isa>(gradients_.z, T(0), spec_.N);
    if (!adds_up()) {
      if (drawn.grad_depth) scatter_winners<isa>(drawn.grad_depth, drawn.index, spec_.H * spec_.W, gradients_.z);
    } else {
      share_out<isa>(spec_.N, num_threads_, num_threads_, [&](int64_t, const Range& points) {
        project_range(scene_, view, points, seen_.seen.from(points.first), nullptr);
      });
      share_out<isa>(spec_.H, num_threads_, num_threads_, [&](int64_t, const Range& rows) {
        for (int64_t y = rows.first; y < rows.last; ++y) {
          pixel_gradients(drawn, seen_.seen, spec_, canvas_, y, pixel_);
        }
      });
    }
    share_out<isa>(spec_.N, num_threads_, num_threads_,
                   [&](int64_t, const Range& points) { gather(view, points, grad + 3 * points.first); });
  }

 private:
  bool adds_up() const { return spec_.mode != ProjectMode::zbuffer; }

  void gather(int64_t view, const Range& points, T* grad) const {
    const int64_t count = points.last - points.first;
    const Seen<isa, T> seen = seen_.seen.from(points.first);
    const SeenGradients<isa, T> gradients = gradients_.from(points.first);
    if (adds_up()) {
      Scratch<isa, int32_t> list(count);
      Scratch<isa, int32_t> starts(spec_.H + 1);
      const int64_t kept = list_by_row(seen, count, spec_.H, starts.get(), list.get());
      Footprints<isa, T, kWidth> footprints(spec_, canvas_);
      if (spec_.mode == ProjectMode::soft) {
        gather_soft(seen, list.get(), kept, spec_, canvas_, pixel_, footprints, gradients);
        return to_world(seen, gradients, count, scene_.m(view), scene_.k(view), grad);
      }
      gather_harmonic(seen, list.get(), kept, canvas_, pixel_, gradients);
    }
    along_axis<isa>(gradients.z, count, scene_.m(view), grad);
  }

  const Scene<isa, T>& scene_;
  const ProjectSpec& spec_;
  int num_threads_;
  Canvas<isa, T, kWidth> canvas_;
  SeenMemory<isa, T> seen_;
  Scratch<isa, T> numbers_;
  SeenGradients<isa, T> gradients_;
  PixelGradients<isa, T> pixel_;
};

}  // namespace jointmae
