// A gather: every point collects from the pixels of its own footprint, in all views, in a fixed order, so that nothing
// is scattered and no scratch memory is needed. A few lanes own a point, one for each column of its footprint (at most
// 32, which then take the columns in turns); as many points as have room share a warp.
#include "common/cuda.h"
#include "common/exponential.h"
#include "project_points/depth_weight.h"
#include "project_points/projected.h"

namespace jointmae {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarpSize;
constexpr int kRowsAtOnce = 5;  // of a footprint, so that their loads are on the way together; 5 has the default radius

// One view: its images, [H, W] each, the gradients null for zeros, and what they were drawn from.
struct View {
  const float* __restrict__ grad_depth;
  const float* __restrict__ grad_coverage;
  const float* __restrict__ depth;
  const int32_t* __restrict__ index;
  const float* __restrict__ weight_sum;
  const float* __restrict__ points;        // [N, 3]
  const float* __restrict__ world_to_cam;  // [3, 4]
  int N, W, H, radius;
};

// What a pixel gives to the points that cover it.
struct Pixel {
  bool inside = false;
  float grad_depth = 0, grad_coverage = 0, depth = 0, weight_sum = 0;
  int32_t nearest = 0;                   // point
  float exponent = 0, per_mantissa = 1;  // of the weight of its depth
};

// The pixel at `at`, as far as the mode needs it for point n, zeros if it is not inside; zbuffer: a gradient only if
// that point has won. Without branches, so that the loads of several pixels go out together.
template <ProjectMode mode>
__device__ __forceinline__ Pixel load_pixel(const View& view, int64_t at, bool inside, int n) {
  Pixel pixel;
  pixel.inside = inside;
  if constexpr (mode != ProjectMode::harmonic) pixel.nearest = view.index[at];
  const bool wanted = inside && (mode != ProjectMode::zbuffer || pixel.nearest == n);
  pixel.grad_depth = view.grad_depth != nullptr && wanted ? view.grad_depth[at] : 0.0f;
  if constexpr (mode == ProjectMode::zbuffer) return pixel;
  pixel.depth = inside ? view.depth[at] : 0.0f;
  pixel.weight_sum = inside ? view.weight_sum[at] : 0.0f;
  if constexpr (mode == ProjectMode::harmonic) return pixel;
  pixel.grad_coverage = view.grad_coverage != nullptr && inside ? view.grad_coverage[at] : 0.0f;
  return pixel;
}

// What a column of a footprint gives its point.
struct Sums {
  float weighted = 0;    // w dL/dw; zbuffer: dL/dz; harmonic: z^2 dL/dz
  float weighted_y = 0;  // w dL/dw times the pixels' offsets in y
  float direct = 0;      // w P, with P the gradient to sum(w z)
};

// Adds a pixel, where the point of depth z has the offset dy. soft: its weight is w * 2^exponent.
template <ProjectMode mode>
__device__ __forceinline__ void add(const Pixel& pixel, float z, float w, float exponent, float dy,
                                    const SoftWeights& soft, Sums& sums) {
  constexpr float kLeast = mode == ProjectMode::soft ? static_cast<float>(kLeastWeight) : 0.0f;
  const float total = pixel.weight_sum, per_w = total > kLeast ? pixel.grad_depth / total : 0.0f;
  if constexpr (mode == ProjectMode::zbuffer) {
    sums.weighted += pixel.grad_depth;
  } else if constexpr (mode == ProjectMode::harmonic) {
    sums.weighted += per_w * pixel.depth;
  } else {
    const float all = total + soft.background;
    const float by_coverage = total > kLeast ? (pixel.grad_coverage * soft.background) / (all * all) : 0.0f;
    const float P = per_w * pixel.per_mantissa, Q = by_coverage * pixel.per_mantissa;
    w *= power_of_two<kIsa>(exponent - pixel.exponent);
    const float g = w * (P * (z - pixel.depth) + Q);
    sums.weighted += g;
    sums.weighted_y += g * dy;
    sums.direct += w * P;
  }
}

// The lanes of a point: lane first + i has column i, i + size... of its footprint.
struct Team {
  int first, size;
  int member;  // this lane is first + member
};

// The gradients to a point's u, v and z in one view: down the columns of its footprint, then across them. All lanes of
// a warp come here, those without a point to draw with `p.kept` false.
template <ProjectMode mode>
__device__ __forceinline__ float3 gather(const View& view, const Projected& p, int n, const Team& team,
                                         const SoftWeights& soft) {
  const int width = 2 * view.radius + 1, left = p.x - view.radius, top = p.y - view.radius;
  const int num_rows = min(team.size, kRowsAtOnce);
  const auto offset = [](int pixel, float at) { return (static_cast<float>(pixel) + 0.5f) - at; };
  const auto gaussian = [&](float distance) {
    return mode == ProjectMode::soft ? exp_negative<kIsa>((distance * distance) * soft.gaussian_scale) : 1.0f;
  };
  const auto of_member = [&](float value, int i) {
    return __shfl_sync(kAllLanes, value, team.first + min(i, team.size - 1));
  };
  const DepthWeight<float> depth = depth_weight<kIsa>(p.z, soft.exponent_per_depth);
  float du = 0, dv = 0, dz = 0, dw = 0;
  for (int columns = 0; columns < width; columns += team.size) {
    const int x = left + columns + team.member;
    const bool inside = p.kept && columns + team.member < width && x >= 0 && x < view.W;
    const float dx = offset(x, p.u), column_weight = gaussian(dx) * depth.mantissa;
    Sums sums;
    for (int rows = 0; rows < width; rows += num_rows) {
      Pixel pixels[kRowsAtOnce];
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) {
        const int y = top + rows + i;
        const bool row_inside = i < num_rows && rows + i < width && y >= 0 && y < view.H;
        const int64_t at = int64_t{min(max(y, 0), view.H - 1)} * view.W + min(max(x, 0), view.W - 1);
        pixels[i] = load_pixel<mode>(view, at, inside && row_inside, n);
      }
      if constexpr (mode == ProjectMode::soft) {
#pragma unroll
        for (int i = 0; i < kRowsAtOnce; ++i) {
          const int in_range = min(max(pixels[i].nearest, 0), view.N - 1);  // whatever was saved
          const float* const nearest = view.points + int64_t{in_range} * 3;
          const float z_min = camera_z(view.world_to_cam, nearest[0], nearest[1], nearest[2]);
          const DepthWeight<float> weight = depth_weight<kIsa>(z_min, soft.exponent_per_depth);
          pixels[i].exponent = pixels[i].inside ? weight.exponent : 0.0f;  // the point's is not above either
          pixels[i].per_mantissa = 1.0f / weight.mantissa;
        }
      }
      const float row_weight = gaussian(offset(top + rows + team.member, p.v));  // a row's for each lane
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) {
        const float weight = mode == ProjectMode::soft ? column_weight * of_member(row_weight, i) : 1.0f;
        add<mode>(pixels[i], p.z, weight, depth.exponent, offset(top + rows + i, p.v), soft, sums);
      }
    }
    for (int i = 0; i < team.size; ++i) {
      dw += of_member(sums.weighted, i);
      if constexpr (mode == ProjectMode::soft) {
        du += of_member(sums.weighted * dx, i);
        dv += of_member(sums.weighted_y, i);
        dz += of_member(sums.direct, i);
      }
    }
  }
  if constexpr (mode == ProjectMode::zbuffer) return make_float3(0.0f, 0.0f, dw);
  if constexpr (mode == ProjectMode::harmonic) return make_float3(0.0f, 0.0f, dw / (p.z * p.z));
  return make_float3(du * soft.per_variance, dv * soft.per_variance, dz - dw * soft.per_temperature);
}

// A team of lanes per point; the grid covers the points of all clouds.
template <ProjectMode mode>
__global__ void __launch_bounds__(kThreads, 4)
    project_points_backward_kernel(const float* __restrict__ grad_depth,     // [B, V, H, W] or null
                                   const float* __restrict__ grad_coverage,  // [B, V, H, W] or null
                                   const float* __restrict__ points,         // [B, N, 3]
                                   const float* __restrict__ world_to_cam,   // [B, V, 3, 4]
                                   const float* __restrict__ intrinsics,     // [B, V, 3, 3]
                                   const float* __restrict__ depth,          // [B, V, H, W]
                                   const int32_t* __restrict__ index,        // [B, V, H, W]
                                   const float* __restrict__ weight_sum,     // [B, V, H, W], not in zbuffer mode
                                   float* __restrict__ grad_points,          // [B, N, 3]
                                   int64_t B, int N, int V, int W, int H, int radius, SoftWeights soft) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize, warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int size = min(2 * radius + 1, kWarpSize), team_of_lane = lane / size, teams = kWarpSize / size;
  const Team team{min(team_of_lane, teams - 1) * size, size, lane % size};
  const int64_t at = (int64_t{blockIdx.x} * kWarps + warp) * teams + team_of_lane;  // point of all clouds
  const bool mine = team_of_lane < teams && at < B * N;
  const int64_t b = mine ? at / N : 0;
  const int n = mine ? static_cast<int>(at - b * N) : 0;
  const float* const cloud = points + b * N * 3;
  float grad_x = 0, grad_y = 0, grad_z = 0;
  for (int v = 0; v < V; ++v) {
    const int64_t view = b * V + v, image = view * H * W;
    const float *m = world_to_cam + view * 12, *k = intrinsics + view * 9;
    Projected p = project(cloud + int64_t{n} * 3, m, k, W, H);
    p.kept = p.kept && mine;
    if (!__any_sync(kAllLanes, p.kept)) continue;
    const View seen{grad_depth != nullptr ? grad_depth + image : nullptr,
                    grad_coverage != nullptr ? grad_coverage + image : nullptr,
                    depth + image,
                    index + image,
                    weight_sum + image,
                    cloud,
                    m,
                    N,
                    W,
                    H,
                    radius};
    const float3 g = gather<mode>(seen, p, n, team, soft);
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
