// A view is projected, then drawn: by one thread where there are views enough for all of them, else its points and its
// rows are shared out. No result depends on that, nor on the width of vectors: nothing is contracted, and all sums run
// in a fixed order.
#include <algorithm>

#include "common/huge_pages.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "project_points/bands.h"
#include "project_points/blend.h"
#include "project_points/canvas.h"
#include "project_points/footprints.h"
#include "project_points/gradients.h"
#include "project_points/nearest_covers.h"
#include "project_points/nearest_pixels.h"
#include "project_points/project_points.h"
#include "project_points/seen.h"

namespace jointmae {
namespace {

template <typename T>
struct Scene {
  const T* points;        // [B, N, 3]
  const T* world_to_cam;  // [B, V, 3, 4]
  const T* intrinsics;    // [B, V, 3, 3]
  ProjectSpec spec;

  const T* cloud(int64_t view) const { return points + view / spec.V * spec.N * 3; }
  const T* m(int64_t view) const { return world_to_cam + view * 12; }
  const T* k(int64_t view) const { return intrinsics + view * 9; }
  Range all_points() const { return {0, spec.N}; }
  Range all_rows() const { return {0, spec.H}; }
  bool single_pixels() const { return spec.radius == 0 && spec.mode == ProjectMode::zbuffer; }
};

// One view's outputs.
template <typename T>
struct Image {
  T* depth;
  int32_t* index;
  T *coverage, *weight_sum;  // null where the mode has none
  int32_t* pixels;
  int64_t* dropped;

  Image of_view(int64_t b, const ProjectSpec& spec) const {
    const int64_t at = b * spec.H * spec.W;
    return {depth + at,
            index + at,
            coverage ? coverage + at : nullptr,
            weight_sum ? weight_sum + at : nullptr,
            pixels + 2 * b * spec.N,
            dropped + b};
  }
};

template <Isa isa, typename T>
void project_range(const Scene<T>& scene, int64_t view, const Range& points, const Seen<isa, T>& seen,
                   int32_t* pixels) {
  const int64_t count = points.last - points.first;
  project(scene.cloud(view) + 3 * points.first, scene.m(view), scene.k(view), scene.spec, count, seen);
  if (pixels) write_pixels(seen, count, pixels + 2 * points.first);
}

// Projects and draws points of one pixel, a block after the other; returns how many were dropped.
template <Isa isa, typename T>
int64_t draw_blocks(const Scene<T>& scene, int64_t view, const Range& points, const Image<T>& image) {
  constexpr int64_t kBlock = 2048;
  SeenMemory<isa, T> memory(kBlock);
  Scratch<isa, int32_t> list(kBlock);
  fill<isa>(image.depth, T(0), scene.spec.H * scene.spec.W);
  fill<isa>(image.index, int32_t{-1}, scene.spec.H * scene.spec.W);
  int64_t dropped = 0;
  for (int64_t first = points.first; first < points.last; first += kBlock) {
    const int64_t count = std::min(kBlock, points.last - first);
    project_range(scene, view, {first, first + count}, memory.seen, image.pixels);
    const int64_t kept = list_kept(memory.seen, count, list.get());
    draw_single_pixels(memory.seen, list.get(), kept, first, scene.spec.W, image.depth, image.index);
    dropped += count - kept;
  }
  return dropped;
}

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
  int64_t draw(const Seen<isa, T>& seen, const Range& rows, const Image<T>& image) {
    const int64_t dropped = bands_.sort(seen, spec_.N, rows);
    for (int64_t band = 0; band < bands_.count(); ++band) {
      canvas_.rows = bands_.rows(band);
      draw_band(seen, bands_.list(band), bands_.size(band), image);
    }
    return dropped;
  }

 private:
  static int64_t band_height(const ProjectSpec& spec) {
    constexpr int64_t kBytes = 96 << 10;  // of the second cache
    const int64_t row_bytes = (spec.W + 2 * spec.radius) * (3 * sizeof(T) + sizeof(int32_t));
    return std::max<int64_t>(kBytes / row_bytes, 1);
  }
  // Whether footprints lie many times over each other.
  bool dense() const { return spec_.N * canvas_.width() * canvas_.width() > 8 * spec_.H * spec_.W; }

  void draw_band(const Seen<isa, T>& seen, const int32_t* list, int64_t count, const Image<T>& image) {
    T *const z_min = numbers_.get(), *const weights = z_min + canvas_.size(), *const sums = weights + canvas_.size();
    if (dense()) {
      windows_.draw(seen, list, count, canvas_, z_min, nearest_.get());
    } else {
      draw_footprints(seen, list, count, canvas_, footprints_.inside.get(), z_min, nearest_.get());
    }
    for (int64_t y = canvas_.rows.first; y < canvas_.rows.last; ++y) write_nearest_row(y, z_min, image);
    if (!blends_) return;
    fill<isa>(weights, T(0), 2 * canvas_.size());
    if (spec_.mode == ProjectMode::soft) {
      add_soft(seen, list, count, canvas_, z_min, footprints_, weights, sums);
    } else {
      add_harmonic(seen, list, count, canvas_, footprints_.inside.get(), weights, sums);
    }
    for (int64_t y = canvas_.rows.first; y < canvas_.rows.last; ++y) {
      const int64_t at = y * spec_.W, from = canvas_.row(y);
      write_blended_row<isa>(weights + from, sums + from, spec_.W, static_cast<T>(spec_.background), image.depth + at,
                             image.coverage ? image.coverage + at : nullptr, image.weight_sum + at);
    }
  }

  void write_nearest_row(int64_t y, const T* z_min, const Image<T>& image) const {
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

  const ProjectSpec& spec_;
  bool blends_;
  Bands<isa> bands_;
  Canvas<isa, T, kWidth> canvas_;
  Windows<isa, T> windows_;
  Footprints<isa, T, kWidth> footprints_;
  Scratch<isa, T> numbers_;
  Scratch<isa, typename Lanes<isa, T>::Index> nearest_;
};

// A few ranges per thread: scratch memory is taken once per range, and a slow thread gets fewer.
template <Isa isa>
int64_t grain(int64_t count, int num_threads) {
  return std::max<int64_t>(1, count / (4 * std::max(num_threads, 1)));
}

// Calls body(first..last) with `parts` ranges that make up [0, count), in parallel.
template <Isa isa, typename Body>
void share_out(int64_t count, int64_t parts, int num_threads, const Body& body) {
  parallel_for(parts, 1, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) body(part, Range{part * count / parts, (part + 1) * count / parts});
  });
}

// Whether there are fewer views than threads, and enough to do in each for several.
template <Isa isa>
bool few_views(const ProjectSpec& spec, int num_threads) {
  constexpr int64_t kWorthSharing = 1 << 16;  // points and pixels
  return spec.B * spec.V < num_threads && spec.N + spec.H * spec.W >= kWorthSharing;
}

// Calls `call(width)` with the width of a footprint of the default radius as a compile-time constant, or with 0.
template <int64_t kWidth>
struct WidthConstant {
  static constexpr int64_t value = kWidth;
};

template <Isa isa, typename Call>
void with_width(int64_t radius, const Call& call) {
  if (radius == 2) {
    call(WidthConstant<5>{});
  } else {
    call(WidthConstant<0>{});
  }
}

// The threads share a view: its points, then its rows.
template <Isa isa, int64_t kWidth, typename T>
void draw_shared_view(const Scene<T>& scene, int64_t view, const Image<T>& image, int num_threads) {
  const ProjectSpec& spec = scene.spec;
  SeenMemory<isa, T> memory(spec.N);
  share_out<isa>(spec.N, num_threads, num_threads, [&](int64_t, const Range& points) {
    project_range(scene, view, points, memory.seen.from(points.first), image.pixels);
  });
  share_out<isa>(spec.H, std::min<int64_t>(num_threads, spec.H), num_threads, [&](int64_t, const Range& rows) {
    const int64_t dropped = Painter<isa, T, kWidth>(spec).draw(memory.seen, rows, image);
    if (rows.first == 0) *image.dropped = dropped;
  });
}

template <Isa isa, int64_t kWidth, typename T>
void draw(const Scene<T>& scene, const Image<T>& outputs, int num_threads) {
  const ProjectSpec& spec = scene.spec;
  const int64_t num_views = spec.B * spec.V;
  if (few_views<isa>(spec, num_threads)) {
    for (int64_t b = 0; b < num_views; ++b) {
      draw_shared_view<isa, kWidth>(scene, b, outputs.of_view(b, spec), num_threads);
    }
    return;
  }
  parallel_for(num_views, grain<isa>(num_views, num_threads), num_threads, [&](int64_t begin, int64_t end) {
    SeenMemory<isa, T> memory(spec.N);
    Painter<isa, T, kWidth> painter(spec);
    for (int64_t b = begin; b < end; ++b) {
      const Image<T> image = outputs.of_view(b, spec);
      project_range(scene, b, scene.all_points(), memory.seen, image.pixels);
      *image.dropped = painter.draw(memory.seen, scene.all_rows(), image);
    }
  });
}

// The threads draw images of their own, of points one after the other, which are then laid over each other.
template <Isa isa, typename T>
void draw_shared_view_of_single_pixels(const Scene<T>& scene, int64_t view, const Image<T>& image, int num_threads) {
  const int64_t num_pixels = scene.spec.H * scene.spec.W, others = num_threads - 1;
  Scratch<isa, T> depths(others * num_pixels);
  Scratch<isa, int32_t> indices(others * num_pixels);
  Scratch<isa, int64_t> dropped(num_threads);
  share_out<isa>(scene.spec.N, num_threads, num_threads, [&](int64_t part, const Range& points) {
    Image<T> own = image;
    if (part > 0) {
      own.depth = depths.get() + (part - 1) * num_pixels;
      own.index = indices.get() + (part - 1) * num_pixels;
    }
    dropped[part] = draw_blocks<isa>(scene, view, points, own);
  });
  share_out<isa>(num_pixels, num_threads, num_threads, [&](int64_t, const Range& p) {
    for (int64_t part = 0; part < others; ++part) {
      const int64_t from = part * num_pixels + p.first;
      merge_images<isa>(depths.get() + from, indices.get() + from, p.last - p.first, image.depth + p.first,
                        image.index + p.first);
    }
  });
  *image.dropped = 0;
  for (int64_t part = 0; part < num_threads; ++part) *image.dropped += dropped[part];
}

template <Isa isa, typename T>
void draw_single_pixels(const Scene<T>& scene, const Image<T>& outputs, int num_threads) {
  const ProjectSpec& spec = scene.spec;
  const int64_t num_views = spec.B * spec.V;
  if (few_views<isa>(spec, num_threads)) {
    for (int64_t b = 0; b < num_views; ++b) {
      draw_shared_view_of_single_pixels<isa>(scene, b, outputs.of_view(b, spec), num_threads);
    }
    return;
  }
  parallel_for(num_views, grain<isa>(num_views, num_threads), num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const Image<T> image = outputs.of_view(b, spec);
      *image.dropped = draw_blocks<isa>(scene, b, scene.all_points(), image);
    }
  });
}

// ---- backward

// What comes back for one view.
template <typename T>
DrawnView<T> of_view(const DrawnView<T>& all, int64_t b, const ProjectSpec& spec) {
  const int64_t at = b * spec.H * spec.W;
  return {all.grad_depth ? all.grad_depth + at : nullptr, all.grad_coverage ? all.grad_coverage + at : nullptr,
          all.depth + at, all.weight_sum + at, all.index + at};
}

// Differentiates views one after the other, with the help of other threads.
template <Isa isa, typename T, int64_t kWidth>
class Differentiator {
 public:
  Differentiator(const Scene<T>& scene, int num_threads)
      : scene_(scene),
        spec_(scene.spec),
        num_threads_(num_threads),
        canvas_(spec_, {0, adds_up() ? spec_.H : 0}),
        seen_(adds_up() ? spec_.N : 0),
        numbers_(3 * spec_.N),
        gradients_{numbers_.get(), numbers_.get() + spec_.N, numbers_.get() + 2 * spec_.N},
        pixel_(canvas_) {}

  // grad [N, 3]
  void differentiate(int64_t view, const DrawnView<T>& drawn, T* grad) {
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

  const Scene<T>& scene_;
  const ProjectSpec& spec_;
  int num_threads_;
  Canvas<isa, T, kWidth> canvas_;
  SeenMemory<isa, T> seen_;
  Scratch<isa, T> numbers_;
  SeenGradients<isa, T> gradients_;
  PixelGradients<isa, T> pixel_;
};

// grad_views [B, V, N, 3]
template <Isa isa, int64_t kWidth, typename T>
void differentiate(const Scene<T>& scene, const DrawnView<T>& drawn, T* grad_views, int num_threads) {
  const ProjectSpec& spec = scene.spec;
  const int64_t num_views = spec.B * spec.V;
  const bool shared = few_views<isa>(spec, num_threads);
  const int64_t views = shared ? num_views : grain<isa>(num_views, num_threads);
  parallel_for(num_views, views, num_threads, [&](int64_t begin, int64_t end) {
    Differentiator<isa, T, kWidth> differentiator(scene, shared ? num_threads : 1);
    for (int64_t b = begin; b < end; ++b) {
      differentiator.differentiate(b, of_view(drawn, b, spec), grad_views + b * spec.N * 3);
    }
  });
}

// The gradient of one cloud: the sum of its views' shares [V, count], in their order.
template <Isa isa, typename T>
void add_views(const T* __restrict__ grad_views, T* __restrict__ grad, int64_t V, int64_t count) {
  fill<isa>(grad, T(0), count);
  for (int64_t v = 0; v < V; ++v) {
    const T* __restrict__ share = grad_views + v * count;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) grad[i] += share[i];
  }
}

}  // namespace

template <Isa isa, typename T>
void project_points_cpu(const T* points, const T* world_to_cam, const T* intrinsics, T* depth, int32_t* index,
                        T* coverage, int32_t* pixels, int64_t* dropped, T* weight_sum, const ProjectSpec& spec,
                        int num_threads) {
  const Scene<T> scene{points, world_to_cam, intrinsics, spec};
  const Image<T> outputs{depth,
                         index,
                         spec.mode == ProjectMode::soft ? coverage : nullptr,
                         spec.mode == ProjectMode::zbuffer ? nullptr : weight_sum,
                         pixels,
                         dropped};
  const int64_t num_pixels = spec.B * spec.V * spec.H * spec.W,
                num_bytes = num_pixels * static_cast<int64_t>(sizeof(T));
  ask_for_huge_pages(outputs.depth, num_bytes);
  ask_for_huge_pages(outputs.index, num_pixels * static_cast<int64_t>(sizeof(int32_t)));
  ask_for_huge_pages(outputs.coverage, num_bytes);
  ask_for_huge_pages(outputs.weight_sum, num_bytes);
  if (scene.single_pixels()) return draw_single_pixels<isa>(scene, outputs, num_threads);
  with_width<isa>(spec.radius, [&](auto width) { draw<isa, decltype(width)::value>(scene, outputs, num_threads); });
}

template <Isa isa, typename T>
void project_points_backward_cpu(const T* grad_depth, const T* grad_coverage, const T* points, const T* world_to_cam,
                                 const T* intrinsics, const T* depth, const int32_t* index, const T* weight_sum,
                                 T* grad_views, T* grad_points, const ProjectSpec& spec, int num_threads) {
  const Scene<T> scene{points, world_to_cam, intrinsics, spec};
  const DrawnView<T> drawn{grad_depth, grad_coverage, depth, weight_sum, index};
  const int64_t V = spec.V, count = spec.N * 3;
  T* const grads = V == 1 ? grad_points : grad_views;
  with_width<isa>(spec.radius,
                  [&](auto width) { differentiate<isa, decltype(width)::value>(scene, drawn, grads, num_threads); });
  if (V == 1) return;
  parallel_for(spec.B, grain<isa>(spec.B, num_threads), num_threads, [=](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) add_views<isa>(grad_views + b * V * count, grad_points + b * count, V, count);
  });
}

template void project_points_cpu<kIsa, float>(const float*, const float*, const float*, float*, int32_t*, float*,
                                              int32_t*, int64_t*, float*, const ProjectSpec&, int);
template void project_points_cpu<kIsa, double>(const double*, const double*, const double*, double*, int32_t*, double*,
                                               int32_t*, int64_t*, double*, const ProjectSpec&, int);
template void project_points_backward_cpu<kIsa, float>(const float*, const float*, const float*, const float*,
                                                       const float*, const float*, const int32_t*, const float*, float*,
                                                       float*, const ProjectSpec&, int);
template void project_points_backward_cpu<kIsa, double>(const double*, const double*, const double*, const double*,
                                                        const double*, const double*, const int32_t*, const double*,
                                                        double*, double*, const ProjectSpec&, int);

}  // namespace jointmae
