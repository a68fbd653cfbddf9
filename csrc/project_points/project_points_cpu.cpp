// A view is projected, then drawn: by one thread where there are views enough for all of them, else its points and its
// rows are shared out. No result depends on that, nor on the width of vectors: nothing is contracted, and all sums run
// in a fixed order.
#include <algorithm>
#include <atomic>

#include "common/parallel.h"
#include "common/scratch.h"
#include "project_points/differentiator.h"
#include "project_points/nearest_pixels.h"
#include "project_points/painter.h"
#include "project_points/project_points.h"
#include "project_points/scene.h"
#include "project_points/seen.h"
#include "project_points/sharing.h"

namespace jointmae {
namespace {

// Projects and draws points of one pixel, a block after the other; returns how many were dropped.
template <Isa isa, typename T>
int64_t draw_blocks(const Scene<isa, T>& scene, int64_t view, const Range& points, const Image<isa, T>& image) {
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
void draw_shared_view(const Scene<isa, T>& scene, int64_t view, const Image<isa, T>& image, int num_threads) {
  const ProjectSpec& spec = scene.spec;
  SeenMemory<isa, T> memory(spec.N, scene.soft());
  share_out<isa>(spec.N, num_threads, num_threads, [&](int64_t, const Range& points) {
    project_range(scene, view, points, memory.seen.from(points.first), image.pixels);
  });
  share_out<isa>(spec.H, std::min<int64_t>(num_threads, spec.H), num_threads, [&](int64_t, const Range& rows) {
    const int64_t dropped = Painter<isa, T, kWidth>(spec).draw(memory.seen, rows, image);
    if (rows.first == 0) *image.dropped = dropped;
  });
}

template <Isa isa, int64_t kWidth, typename T>
void draw(const Scene<isa, T>& scene, const Image<isa, T>& outputs, int num_threads) {
  const ProjectSpec& spec = scene.spec;
  const int64_t num_views = spec.B * spec.V;
  if (few_views<isa>(spec, num_threads)) {
    for (int64_t b = 0; b < num_views; ++b) {
      draw_shared_view<isa, kWidth>(scene, b, outputs.of_view(b, spec), num_threads);
    }
    return;
  }
  parallel_for(num_views, grain<isa>(num_views, num_threads), num_threads, [&](int64_t begin, int64_t end) {
    SeenMemory<isa, T> memory(spec.N, scene.soft());
    Painter<isa, T, kWidth> painter(spec);
    for (int64_t b = begin; b < end; ++b) {
      const Image<isa, T> image = outputs.of_view(b, spec);
      project_range(scene, b, scene.all_points(), memory.seen, image.pixels);
      *image.dropped = painter.draw(memory.seen, scene.all_rows(), image);
    }
  });
}

// The threads draw `parts` images of their own, of points one after the other, which are then laid over each other.
template <Isa isa, typename T>
void draw_shared_view_of_single_pixels(const Scene<isa, T>& scene, int64_t view, const Image<isa, T>& image,
                                       int64_t parts, int num_threads) {
  const int64_t num_pixels = scene.spec.H * scene.spec.W, others = parts - 1;
  Scratch<isa, T> depths(others * num_pixels);
  Scratch<isa, int32_t> indices(others * num_pixels);
  Scratch<isa, int64_t> dropped(parts);
  share_out<isa>(scene.spec.N, parts, num_threads, [&](int64_t part, const Range& points) {
    Image<isa, T> own = image;
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
  for (int64_t part = 0; part < parts; ++part) *image.dropped += dropped[part];
}

template <Isa isa, typename T>
void draw_single_pixels(const Scene<isa, T>& scene, const Image<isa, T>& outputs, int num_threads) {
  const ProjectSpec& spec = scene.spec;
  const int64_t num_views = spec.B * spec.V;
  const int64_t parts = std::min<int64_t>(num_threads, spec.N / (spec.H * spec.W));  // an image more costs its pixels
  if (num_views < num_threads && parts > 1) {
    for (int64_t b = 0; b < num_views; ++b) {
      draw_shared_view_of_single_pixels<isa>(scene, b, outputs.of_view(b, spec), parts, num_threads);
    }
    return;
  }
  parallel_for(num_views, grain<isa>(num_views, num_threads), num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const Image<isa, T> image = outputs.of_view(b, spec);
      *image.dropped = draw_blocks<isa>(scene, b, scene.all_points(), image);
    }
  });
}

// grad_views [B, V, N, 3]
template <Isa isa, int64_t kWidth, typename T>
void differentiate(const Scene<isa, T>& scene, const DrawnView<isa, T>& drawn, T* grad_views, int num_threads) {
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
bool project_points_cpu(const T* points, const T* world_to_cam, const T* intrinsics, T* depth, int32_t* index,
                        T* coverage, int32_t* pixels, int64_t* dropped, T* weight_sum, const ProjectSpec& spec,
                        int num_threads) {
  std::atomic<int> far_out{0};
  const Scene<isa, T> scene{points, world_to_cam, intrinsics, spec, &far_out};
  const Image<isa, T> outputs{depth,
                              index,
                              spec.mode == ProjectMode::soft ? coverage : nullptr,
                              spec.mode == ProjectMode::zbuffer ? nullptr : weight_sum,
                              pixels,
                              dropped};
  if (scene.single_pixels()) {
    draw_single_pixels<isa>(scene, outputs, num_threads);
  } else {
    with_width<isa>(spec.radius, [&](auto width) { draw<isa, decltype(width)::value>(scene, outputs, num_threads); });
  }
  return far_out == 0 && scene.cameras_are_sound();
}

template <Isa isa, typename T>
void project_points_backward_cpu(const T* grad_depth, const T* grad_coverage, const T* points, const T* world_to_cam,
                                 const T* intrinsics, const T* depth, const int32_t* index, const T* weight_sum,
                                 T* grad_views, T* grad_points, const ProjectSpec& spec, int num_threads) {
  const Scene<isa, T> scene{points, world_to_cam, intrinsics, spec};
  const DrawnView<isa, T> drawn{grad_depth, grad_coverage, depth, weight_sum, index};
  const int64_t V = spec.V, count = spec.N * 3;
  T* const grads = V == 1 ? grad_points : grad_views;
  with_width<isa>(spec.radius,
                  [&](auto width) { differentiate<isa, decltype(width)::value>(scene, drawn, grads, num_threads); });
  if (V == 1) return;
  parallel_for(spec.B, grain<isa>(spec.B, num_threads), num_threads, [=](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) add_views<isa>(grad_views + b * V * count, grad_points + b * count, V, count);
  });
}

template bool project_points_cpu<kIsa, float>(const float*, const float*, const float*, float*, int32_t*, float*,
                                              int32_t*, int64_t*, float*, const ProjectSpec&, int);
template bool project_points_cpu<kIsa, double>(const double*, const double*, const double*, double*, int32_t*, double*,
                                               int32_t*, int64_t*, double*, const ProjectSpec&, int);
template void project_points_backward_cpu<kIsa, float>(const float*, const float*, const float*, const float*,
                                                       const float*, const float*, const int32_t*, const float*, float*,
                                                       float*, const ProjectSpec&, int);
template void project_points_backward_cpu<kIsa, double>(const double*, const double*, const double*, const double*,
                                                        const double*, const double*, const int32_t*, const double*,
                                                        double*, double*, const ProjectSpec&, int);

}  // namespace jointmae
