// The arguments of project_points.h, by view.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>

#include "common/isa.h"
#include "project_points/project_points.h"
#include "project_points/seen.h"

namespace jointmae {

template <Isa isa, typename T>
struct Scene {
  const T* points;        // [B, N, 3]
  const T* world_to_cam;  // [B, V, 3, 4]
  const T* intrinsics;    // [B, V, 3, 3]
  ProjectSpec spec;
  std::atomic<int>* far_out = nullptr;  // set where a point is not finite to its camera

  const T* cloud(int64_t view) const { return points + view / spec.V * spec.N * 3; }
  const T* m(int64_t view) const { return world_to_cam + view * 12; }
  const T* k(int64_t view) const { return intrinsics + view * 9; }
  Range all_points() const { return {0, spec.N}; }
  Range all_rows() const { return {0, spec.H}; }
  // Whether all cameras are finite and without skew.
  bool cameras_are_sound() const {
    const int64_t num_views = spec.B * spec.V;
    bool sound = true;
    for (int64_t i = 0; i < num_views * 12; ++i) sound &= std::isfinite(world_to_cam[i]);
    for (int64_t i = 0; i < num_views * 9; ++i) sound &= std::isfinite(intrinsics[i]);
    for (int64_t b = 0; b < num_views; ++b) sound &= k(b)[1] == 0;
    return sound;
  }
  bool soft() const { return spec.mode == ProjectMode::soft; }
  bool single_pixels() const { return spec.radius == 0 && spec.mode == ProjectMode::zbuffer; }
};

// One view's outputs.
template <Isa isa, typename T>
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
void project_range(const Scene<isa, T>& scene, int64_t view, const Range& points, const Seen<isa, T>& seen,
                   int32_t* pixels) {
  const int64_t count = points.last - points.first;
  const bool finite =
      project(scene.cloud(view) + 3 * points.first, scene.m(view), scene.k(view), scene.spec, count, seen);
  if (!finite && scene.far_out) *scene.far_out = 1;
  if (seen.exponent) weigh_depths(seen, count, scene.spec.temperature);
  if (pixels) write_pixels(seen, count, pixels + 2 * points.first);
}

}  // namespace jointmae
