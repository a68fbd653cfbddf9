// Where a point is seen, as the kernels of forward and backward compute it: the arithmetic of project_points.h.
#pragma once

#include <cmath>

#include "common/cuda.h"
#include "project_points/depth_weight.h"
#include "project_points/project_points.h"

namespace jointmae {

struct Projected {
  float u, v, z;  // position in pixels, camera z
  int x, y;       // the pixel, -1 where dropped
  bool kept;
};

// The third of a camera's rows m applied to a point.
__device__ __forceinline__ float camera_z(const float* __restrict__ m, float x, float y, float z) {
  return ((m[8] * x + m[9] * y) + m[10] * z) + m[11];
}

// The numbers of a frame's pixels are below 2^30. Whatever is not finite fails a comparison, and the point is dropped.
__device__ __forceinline__ Projected project(const float* __restrict__ point, const float* __restrict__ m,
                                             const float* __restrict__ k, int W, int H) {
  const float x = point[0], y = point[1], z = point[2];
  const float x_cam = ((m[0] * x + m[1] * y) + m[2] * z) + m[3];
  const float y_cam = ((m[4] * x + m[5] * y) + m[6] * z) + m[7];
  Projected out;
  out.z = camera_z(m, x, y, z);
  out.u = (k[0] * x_cam) / out.z + k[2];
  out.v = (k[4] * y_cam) / out.z + k[5];
  const float column = floorf(out.u), row = floorf(out.v);
  constexpr float kNear = static_cast<float>(kNearestDepth);
  out.kept =  // compared as floats: a far-out pixel does not fit into an integer
      out.z > kNear && out.z < INFINITY && column >= 0.0f && column < static_cast<float>(W) && row >= 0.0f &&
      row < static_cast<float>(H);
  out.x = out.kept ? static_cast<int>(column) : -1;
  out.y = out.kept ? static_cast<int>(row) : -1;
  return out;
}

// What the soft mode's formulas need of its settings, rounded as on the CPU.
struct SoftWeights {
  explicit SoftWeights(const ProjectSpec& spec)
      : gaussian_scale(static_cast<float>(-0.5 / (spec.sigma * spec.sigma))),
        per_variance(static_cast<float>(1.0 / (spec.sigma * spec.sigma))),
        per_temperature(static_cast<float>(1.0 / spec.temperature)),
        background(static_cast<float>(spec.background)),
        exponent_per_depth(jointmae::exponent_per_depth<kIsa>(spec.temperature)) {}
  float gaussian_scale, per_variance, per_temperature, background;
  double exponent_per_depth;
};

}  // namespace jointmae
