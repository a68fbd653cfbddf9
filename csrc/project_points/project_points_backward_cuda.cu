// A gather: every point collects from the pixels of its own footprint, in all views, in a fixed order, so that nothing
// is scattered and no scratch memory is needed. A few lanes own a point, one for each column of its footprint (at most
// 32, which then take the columns in turns); as many points as have room share a warp.
#include "common/cuda.h"
#include "common/exp_negative.h"
#include "project_points/projected.h"

namespace jointmae {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarpSize;

// One view's images, [H, W] each; the gradients may be null for zeros.
struct Images {
  const float* __restrict__ grad_depth;
  const float* __restrict__ grad_coverage;
  const float* __restrict__ depth;
  const int32_t* __restrict__ index;
  const float* __restrict__ weight_sum;
};

// What the pixels of a footprint, or of one of its columns, give a point.
struct Sums {
  float weighted = 0;    // w dL/dw; zbuffer and harmonic: dL/dz, harmonic times z^2
  float weighted_y = 0;  // that times the pixel's offset in y
  float direct = 0;      // w times the gradient to the weighted mean's terms
};

// The lanes of a point.
struct Team {
  int first, size;  // lanes
  int member;       // this lane is first + member
};

// Adds what the pixel at `at` gives to a point of index n and depth z, whose footprint has the weight w and the offset
// dy there. `cloud` and m are the points and the camera that the view was drawn from.
template <ProjectMode mode>
__device__ __forceinline__ void add_pixel(const Images& images, int64_t at, int64_t n, float z, float w, float dy,
                                          const float* __restrict__ cloud, int64_t N, const float* __restrict__ m,
                                          const SoftWeights& soft, Sums& sums) {
  if constexpr (mode == ProjectMode::zbuffer) {
    if (images.index[at] == n && images.grad_depth != nullptr) sums.weighted += images.grad_depth[at];
    return;
  }
  const float total = images.weight_sum[at];
  if (!(total > 0.0f)) return;  // all weights underflow
  const float grad = images.grad_depth != nullptr ? images.grad_depth[at] / total : 0.0f;
  if constexpr (mode == ProjectMode::harmonic) {
    sums.weighted += grad * images.depth[at];
    return;
  }
  const int64_t nearest = min(max(int64_t{images.index[at]}, int64_t{0}), N - 1);  // in range, whatever was saved
  const float z_min = camera_z(m, cloud[3 * nearest], cloud[3 * nearest + 1], cloud[3 * nearest + 2]);
  float by_coverage = 0.0f;
  if (images.grad_coverage != nullptr) {
    const float with_background = total + soft.background;
    by_coverage = (images.grad_coverage[at] * soft.background) / (with_background * with_background);
  }
  w *= exp_negative<kIsa>((z_min - z) * soft.per_temperature);
  const float g = w * (grad * (z - images.depth[at]) + by_coverage);
  sums.weighted += g;
  sums.weighted_y += g * dy;
  sums.direct += w * grad;
}

// The gradients to a point's u, v and z in one view: down the columns of its footprint, then across them. All lanes of
// a warp come here, those without a point to draw with `p.kept` false.
template <ProjectMode mode>
__device__ __forceinline__ float3 gather(const Images& images, const Projected& p, int64_t n, const Team& team,
                                         const float* __restrict__ cloud, int64_t N, const float* __restrict__ m, int W,
                                         int H, int radius, const SoftWeights& soft) {
  const int width = 2 * radius + 1, left = p.x - radius, top = p.y - radius;
  const auto offset = [](int pixel, float at) { return (static_cast<float>(pixel) + 0.5f) - at; };
  const auto gaussian = [&](float distance) { return exp_negative<kIsa>((distance * distance) * soft.gaussian_scale); };
  float du = 0, dv = 0, dz = 0, dw = 0;
  for (int columns = 0; columns < width; columns += team.size) {
    const int x = left + columns + team.member;
    const bool inside = p.kept && columns + team.member < width && x >= 0 && x < W;
    const float dx = offset(x, p.u);
    const float column_weight = mode == ProjectMode::soft ? gaussian(dx) : 1.0f;
    Sums sums;
    for (int rows = 0; rows < width; rows += team.size) {
      // Each lane computes the weight of one row for all.
      const float row_weight = mode == ProjectMode::soft ? gaussian(offset(top + rows + team.member, p.v)) : 1.0f;
      for (int i = 0; i < team.size && rows + i < width; ++i) {
        const int y = top + rows + i;
        const float weight = mode == ProjectMode::soft ? __shfl_sync(kAllLanes, row_weight, team.first + i) : 1.0f;
        if (inside && y >= 0 && y < H) {
          add_pixel<mode>(images, int64_t{y} * W + x, n, p.z, column_weight * weight, offset(y, p.v), cloud, N, m, soft,
                          sums);
        }
      }
    }
    for (int i = 0; i < team.size; ++i) {
      dw += __shfl_sync(kAllLanes, sums.weighted, team.first + i);
      if constexpr (mode == ProjectMode::soft) {
        du += __shfl_sync(kAllLanes, sums.weighted * dx, team.first + i);
        dv += __shfl_sync(kAllLanes, sums.weighted_y, team.first + i);
        dz += __shfl_sync(kAllLanes, sums.direct, team.first + i);
      }
    }
  }
  if constexpr (mode == ProjectMode::zbuffer) return make_float3(0.0f, 0.0f, dw);
  if constexpr (mode == ProjectMode::harmonic) return make_float3(0.0f, 0.0f, dw / (p.z * p.z));
  return make_float3(du * soft.per_variance, dv * soft.per_variance, dz - dw * soft.per_temperature);
}

// A team of lanes per point; the grid covers the points of all clouds.
template <ProjectMode mode>
__global__ void __launch_bounds__(kThreads, 5)
    project_points_backward_kernel(const float* __restrict__ grad_depth,     // [B, V, H, W] or null
                                   const float* __restrict__ grad_coverage,  // [B, V, H, W] or null
                                   const float* __restrict__ points,         // [B, N, 3]
                                   const float* __restrict__ world_to_cam,   // [B, V, 3, 4]
                                   const float* __restrict__ intrinsics,     // [B, V, 3, 3]
                                   const float* __restrict__ depth,          // [B, V, H, W]
                                   const int32_t* __restrict__ index,        // [B, V, H, W]
                                   const float* __restrict__ weight_sum,     // [B, V, H, W], not in zbuffer mode
                                   float* __restrict__ grad_points,          // [B, N, 3]
                                   int64_t B, int64_t N, int V, int W, int H, int radius, SoftWeights soft) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize, warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int size = min(2 * radius + 1, kWarpSize), team_of_lane = lane / size, teams = kWarpSize / size;
  const Team team{min(team_of_lane, teams - 1) * size, size, lane % size};
  const int64_t at = (int64_t{blockIdx.x} * kWarps + warp) * teams + team_of_lane;  // point of all clouds
  const bool mine = team_of_lane < teams && at < B * N;
  const int64_t b = mine ? at / N : 0, n = mine ? at % N : 0;
  const float* const cloud = points + b * N * 3;
  float grad_x = 0, grad_y = 0, grad_z = 0;
  for (int v = 0; v < V; ++v) {
    const int64_t view = b * V + v, image = view * H * W;
    const float *m = world_to_cam + view * 12, *k = intrinsics + view * 9;
    Projected p = project(cloud + 3 * n, m, k, W, H);
    p.kept = p.kept && mine;
    if (!__any_sync(kAllLanes, p.kept)) continue;
    const Images images{grad_depth != nullptr ? grad_depth + image : nullptr,
                        grad_coverage != nullptr ? grad_coverage + image : nullptr, depth + image, index + image,
                        weight_sum + image};
    const float3 g = gather<mode>(images, p, n, team, cloud, N, m, W, H, radius, soft);
    if (!p.kept) continue;
    float x = 0.0f, y = 0.0f, z = g.z;
    if constexpr (mode == ProjectMode::soft) {
      x = g.x * k[0] / p.z;
      y = g.y * k[4] / p.z;
      z -= (g.x * (p.u - k[2]) + g.y * (p.v - k[5])) / p.z;
      grad_x += (m[0] * x + m[4] * y) + m[8] * z;
      grad_y += (m[1] * x + m[5] * y) + m[9] * z;
      grad_z += (m[2] * x + m[6] * y) + m[10] * z;
    } else {
      grad_x += m[8] * z;
      grad_y += m[9] * z;
      grad_z += m[10] * z;
    }
  }
  if (!mine || team.member != 0) return;
  grad_points[3 * at] = grad_x;
  grad_points[3 * at + 1] = grad_y;
  grad_points[3 * at + 2] = grad_z;
}

}  // namespace

void project_points_backward_cuda(const float* grad_depth, const float* grad_coverage, const float* points,
                                  const float* world_to_cam, const float* intrinsics, const float* depth,
                                  const int32_t* index, const float* weight_sum, float* grad_points,
                                  const ProjectSpec& spec, const Stream& stream) {
  const int64_t width = 2 * spec.radius + 1;
  const int64_t points_per_block = kWarps * (width < kWarpSize ? kWarpSize / width : 1);
  const auto run = [&](auto kernel) {
    launch("project_points_backward", kernel, {ceil_div(spec.B * spec.N, points_per_block), kThreads}, stream,
           grad_depth, grad_coverage, points, world_to_cam, intrinsics, depth, index, weight_sum, grad_points, spec.B,
           spec.N, spec.V, spec.W, spec.H, spec.radius, SoftWeights(spec));
  };
  if (spec.mode == ProjectMode::zbuffer) {
    run(project_points_backward_kernel<ProjectMode::zbuffer>);
  } else if (spec.mode == ProjectMode::soft) {
    run(project_points_backward_kernel<ProjectMode::soft>);
  } else {
    run(project_points_backward_kernel<ProjectMode::harmonic>);
  }
}

}  // namespace jointmae
