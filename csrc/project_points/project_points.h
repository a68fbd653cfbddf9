// Point clouds drawn as depth maps through pinhole cameras. B clouds, V views, N points, H x W pixels.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/stream.h"

namespace jointmae {

enum class ProjectMode { zbuffer = 0, soft = 1, harmonic = 2 };

struct ProjectSpec {
  int64_t B, V, N, H, W;
  int64_t radius;  // a point covers (2 * radius + 1)^2 pixels, clipped to the frame
  ProjectMode mode;
  double sigma, temperature, background;  // soft mode only: pixels, depth, weight
};

// A pixel whose weights add up to less passes no gradient: it could overflow.
inline constexpr double kLeastWeight = 1e-30;

// A point not farther in front of the camera than this is behind it.
inline constexpr double kNearestDepth = 1e-6;

// Camera coordinates are ((m0 * x + m1 * y) + m2 * z) + m3 for each row m of world_to_cam, and the projected position
// is u = (fx * x) / z + cx, v = (fy * y) / z + cy, each operation rounded; pixel = floor of it. A point with z <=
// kNearestDepth, with infinite z or outside the frame is dropped. index is the nearest point that covers the pixel,
// ties lowest; depth of a pixel that points i cover is
//   zbuffer   z of `index`
//   soft      sum w_i z_i / sum w_i,  w_i = exp(-d_i^2 / 2 sigma^2) exp(-(z_i - z_min) / temperature), d_i from the
//             pixel's centre to (u, v); coverage = sum w / (sum w + background); exp(-z / temperature) as in
//             depth_weight.h
//   harmonic  count / sum w_i,  w_i = 1 / z_i
// and 0 where no point covers it. Sums run in the order of the points. T is float or double.
//
// Returns true if the input is finite and no camera has skew. Where it returns false the caller has to look: that may
// not be so, or a point lies so far from a camera that the sum of its coordinates overflows. A point that is not finite
// to a camera is dropped, and skew is not applied.
template <Isa isa, typename T>
bool project_points_cpu(const T* points,        // [B, N, 3]
                        const T* world_to_cam,  // [B, V, 3, 4]
                        const T* intrinsics,    // [B, V, 3, 3]
                        T* depth,               // [B, V, H, W]
                        int32_t* index,         // [B, V, H, W], -1 where empty
                        T* coverage,            // [B, V, H, W], written in soft mode only
                        int32_t* pixels,        // [B, V, N, 2] (x, y), -1 where dropped
                        int64_t* dropped,       // [B, V]
                        T* weight_sum,          // [B, V, H, W], sum w; not written in zbuffer mode
                        const ProjectSpec& spec, int num_threads);

// The gradient of depth and coverage to the points. Only depth passes one in the modes zbuffer and harmonic, to z
// alone; z_min is a constant.
template <Isa isa, typename T>
void project_points_backward_cpu(const T* grad_depth,     // [B, V, H, W] or null for zeros
                                 const T* grad_coverage,  // [B, V, H, W] or null for zeros
                                 const T* points,         // [B, N, 3]
                                 const T* world_to_cam,   // [B, V, 3, 4]
                                 const T* intrinsics,     // [B, V, 3, 3]
                                 const T* depth, const int32_t* index, const T* weight_sum,  // as forward gave them
                                 T* grad_views,   // [B, V, N, 3], scratch: each view's share; not used if V = 1
                                 T* grad_points,  // [B, N, 3]
                                 const ProjectSpec& spec, int num_threads);

// As above, in float32. Finite input gives the bits of the CPU; a point that is not finite, or seen by a camera that is
// not, is dropped. H and W are below 2^30. `path` chooses the tiles that the image is drawn in: 0 by the size of the
// work, 1 large ones, 2 small ones; the results are the same.
void project_points_cuda(const float* points, const float* world_to_cam, const float* intrinsics, float* depth,
                         int32_t* index, float* coverage, int32_t* pixels, int64_t* dropped, float* weight_sum,
                         void* workspace,  // of project_points_workspace_cuda bytes, aligned to 16
                         const ProjectSpec& spec, int path, const Stream& stream);

int64_t project_points_workspace_cuda(const ProjectSpec& spec, int path, const Stream& stream);

// As above, in float32, without scratch memory. The sums of a point run down the columns of its footprint, then across
// them, then over the views.
void project_points_backward_cuda(const float* grad_depth, const float* grad_coverage, const float* points,
                                  const float* world_to_cam, const float* intrinsics, const float* depth,
                                  const int32_t* index, const float* weight_sum, float* grad_points,
                                  const ProjectSpec& spec, const Stream& stream);

}  // namespace jointmae
