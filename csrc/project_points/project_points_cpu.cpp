// One thread per view, which owns its image. A view is drawn on a canvas, the image with a margin of `radius` pixels on
// every side, so that no footprint is clipped; the columns of a footprint are handled kLanes at a time, the spare ones
// with weight 0. No lane depends on another and nothing is contracted: results have the same bits at every level of
// Isa.
#include <algorithm>
#include <cmath>
#include <limits>

#include "common/exp_negative.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "project_points/project_points.h"

namespace jointmae {
namespace {

constexpr int64_t kLanes = 8;

// Where the points of a view are.
template <Isa isa, typename T>
struct Projected {
  explicit Projected(int64_t N) : coordinates(3 * N), corners(2 * N) {
    u = coordinates.get(), v = u + N, z = v + N;
    px = corners.get(), py = px + N;
  }
  Scratch<isa, T> coordinates;
  Scratch<isa, int32_t> corners;
  T *u, *v, *z;      // projected position in pixels, camera z
  int32_t *px, *py;  // the pixel, -1 where dropped; in canvas coordinates the footprint's top left corner
};

// Projects the points of one view; returns how many were dropped.
template <Isa isa, typename T>
int64_t project_view(const T* __restrict__ points, const T* __restrict__ m, const T* __restrict__ k,
                     const ProjectSpec& spec, Projected<isa, T>& out) {
  const T fx = k[0], cx = k[2], fy = k[4], cy = k[5];
  const T W = static_cast<T>(spec.W), H = static_cast<T>(spec.H);
  constexpr T kNear = static_cast<T>(kNearestDepth), kFar = std::numeric_limits<T>::max();
  T* __restrict__ u = out.u, * __restrict__ v = out.v, * __restrict__ z = out.z;
  int32_t* __restrict__ px = out.px, * __restrict__ py = out.py;
  const int64_t N = spec.N;
  int32_t kept = 0;
#pragma omp simd reduction(+ : kept)
  for (int64_t n = 0; n < N; ++n) {
    const T x0 = points[3 * n], y0 = points[3 * n + 1], z0 = points[3 * n + 2];
    const T xc = ((m[0] * x0 + m[1] * y0) + m[2] * z0) + m[3];
    const T yc = ((m[4] * x0 + m[5] * y0) + m[6] * z0) + m[7];
    const T zc = ((m[8] * x0 + m[9] * y0) + m[10] * z0) + m[11];
    const T uc = (fx * xc) / zc + cx, vc = (fy * yc) / zc + cy;
    const T column = std::floor(uc), row = std::floor(vc);
    const bool keep =  // compared as floats: a far-out pixel does not fit into an integer
        (zc > kNear) & (zc <= kFar) & (column >= 0) & (column < W) & (row >= 0) & (row < H);
    u[n] = uc;
    v[n] = vc;
    z[n] = zc;
    px[n] = static_cast<int32_t>(keep ? column : T(-1));
    py[n] = static_cast<int32_t>(keep ? row : T(-1));
    kept += keep;
  }
  return N - kept;
}

template <Isa isa, typename T>
void write_pixels(const Projected<isa, T>& view, int32_t* __restrict__ pixels, int64_t N) {
  for (int64_t n = 0; n < N; ++n) {
    pixels[2 * n] = view.px[n];
    pixels[2 * n + 1] = view.py[n];
  }
}

// The shape of a canvas for this spec. L lanes.
struct CanvasShape {
  int64_t width;   // columns (and rows) of a footprint
  int64_t padded;  // the columns in whole groups of L
  int64_t stride, size;

  template <Isa isa>
  static CanvasShape of(const ProjectSpec& spec, int64_t L) {
    const int64_t width = 2 * spec.radius + 1, padded = (width + L - 1) / L * L, stride = spec.W - 1 + padded;
    return {width, padded, stride, (spec.H - 1 + width) * stride};
  }
};

template <Isa isa, typename T>
void fill(T* __restrict__ values, T value, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) values[i] = value;
}

// The z-buffer: the nearest point of each canvas pixel and its z, infinity and -1 where there is none. Ties go to the
// lowest index because points come in order. `lane_z` is room for one row of a footprint.
template <Isa isa, int64_t L, typename T>
void draw_nearest(const Projected<isa, T>& view, const CanvasShape& canvas, T* __restrict__ lane_z, int64_t N,
                  T* __restrict__ z_min, int32_t* __restrict__ index) {
  fill<isa>(z_min, std::numeric_limits<T>::infinity(), canvas.size);
  fill<isa>(index, int32_t{-1}, canvas.size);
  fill<isa>(lane_z, std::numeric_limits<T>::infinity(), canvas.padded);
  for (int64_t n = 0; n < N; ++n) {
    if (view.px[n] < 0) continue;
    fill<isa>(lane_z, view.z[n], canvas.width);
    const int32_t point = static_cast<int32_t>(n);
    for (int64_t i = 0; i < canvas.width; ++i) {
      const int64_t row = (view.py[n] + i) * canvas.stride + view.px[n];
      for (int64_t j = 0; j < canvas.padded; j += L) {
#pragma omp simd
        for (int64_t l = 0; l < L; ++l) {
          const T nearest = z_min[row + j + l], z = lane_z[j + l];
          index[row + j + l] = z < nearest ? point : index[row + j + l];
          z_min[row + j + l] = z < nearest ? z : nearest;
        }
      }
    }
  }
}

// The separable parts of a point's weights, one value per column and per row of its footprint, 0 in spare columns.
template <Isa isa, int64_t L, typename T>
struct Footprint {
  explicit Footprint(const CanvasShape& canvas) : values(5 * canvas.padded), padded(canvas.padded) {
    dx = values.get(), dy = dx + padded, wx = dy + padded, wy = wx + padded, flat = wy + padded;
    for (int64_t j = 0; j < padded; ++j) flat[j] = j < canvas.width ? T(1) : T(0);
  }
  // Gaussian weights of the pixels around (px, py), and the offsets from (u, v) to their centres.
  void gaussian(T u, T v, int64_t px, int64_t py, int64_t radius, T scale) {
    const T left = static_cast<T>(px - radius) + T(0.5), top = static_cast<T>(py - radius) + T(0.5);
    for (int64_t j = 0; j < padded; j += L) {
      T* __restrict__ x = dx + j, * __restrict__ y = dy + j, * __restrict__ ex = wx + j, * __restrict__ ey = wy + j;
      const T* __restrict__ spare = flat + j;
      const int32_t first = static_cast<int32_t>(j);
#pragma omp simd
      for (int32_t l = 0; l < static_cast<int32_t>(L); ++l) {
        const T offset = static_cast<T>(first + l);
        const T a = (left + offset) - u, b = (top + offset) - v;
        x[l] = a;
        y[l] = b;
        ex[l] = exp_negative<isa>((a * a) * scale) * spare[l];
        ey[l] = exp_negative<isa>((b * b) * scale);
      }
    }
  }
  Scratch<isa, T> values;
  int64_t padded;
  T *dx, *dy, *wx, *wy;
  T* flat;  // 1 in the footprint's columns
};

// Adds up the weights w and w * z (harmonic: 1) of the points of one view, in their order.
template <Isa isa, int64_t L, ProjectMode mode, typename T>
void accumulate(const Projected<isa, T>& view, const CanvasShape& canvas, Footprint<isa, L, T>& footprint,
                const ProjectSpec& spec, const T* __restrict__ z_min, T* __restrict__ weights, T* __restrict__ sums) {
  fill<isa>(weights, T(0), canvas.size);
  fill<isa>(sums, T(0), canvas.size);
  const T gaussian_scale = static_cast<T>(-0.5 / (spec.sigma * spec.sigma));
  const T per_temperature = static_cast<T>(1.0 / spec.temperature);
  const T* __restrict__ wx = mode == ProjectMode::soft ? footprint.wx : footprint.flat;
  for (int64_t n = 0; n < spec.N; ++n) {
    if (view.px[n] < 0) continue;
    const T z = view.z[n], per_z = T(1) / z;
    if constexpr (mode == ProjectMode::soft) {
      footprint.gaussian(view.u[n], view.v[n], view.px[n], view.py[n], spec.radius, gaussian_scale);
    }
    for (int64_t i = 0; i < canvas.width; ++i) {
      const int64_t row = (view.py[n] + i) * canvas.stride + view.px[n];
      const T wy = footprint.wy[i];
      for (int64_t j = 0; j < canvas.padded; j += L) {
#pragma omp simd
        for (int64_t l = 0; l < L; ++l) {
          const int64_t p = row + j + l;
          if constexpr (mode == ProjectMode::soft) {
            const T w = (wx[j + l] * wy) * exp_negative<isa>((z_min[p] - z) * per_temperature);
            weights[p] += w;
            sums[p] += w * z;
          } else {
            weights[p] += wx[j + l] * per_z;
            sums[p] += wx[j + l];
          }
        }
      }
    }
  }
}

// Addresses of one view's outputs or inputs.
template <typename T>
struct Image {
  T *depth, *coverage, *weight_sum;
  int32_t* index;
};

template <Isa isa, ProjectMode mode, typename T>
void write_image(const ProjectSpec& spec, const CanvasShape& canvas, const T* z_min, const int32_t* nearest,
                 const T* weights, const T* sums, const Image<T>& image) {
  const T background = static_cast<T>(spec.background);
  for (int64_t y = 0; y < spec.H; ++y) {
    const int64_t from = (y + spec.radius) * canvas.stride + spec.radius, to = y * spec.W;
    const int32_t* __restrict__ source = nearest + from;
    int32_t* __restrict__ index = image.index + to;
    T* __restrict__ depth = image.depth + to, * __restrict__ coverage = image.coverage + to;
    if constexpr (mode == ProjectMode::zbuffer) {
      const T* __restrict__ z = z_min + from;
#pragma omp simd
      for (int64_t x = 0; x < spec.W; ++x) {
        const bool covered = source[x] >= 0;
        index[x] = source[x];
        depth[x] = covered ? z[x] : T(0);
        coverage[x] = covered ? T(1) : T(0);
      }
    } else {
      const T* __restrict__ w = weights + from, * __restrict__ s = sums + from;
      T* __restrict__ weight_sum = image.weight_sum + to;
#pragma omp simd
      for (int64_t x = 0; x < spec.W; ++x) {
        const bool covered = w[x] > 0;  // where the weights are 0, so is the sum
        index[x] = source[x];
        weight_sum[x] = w[x];
        depth[x] = s[x] / (covered ? w[x] : T(1));
        coverage[x] = mode == ProjectMode::soft ? w[x] / (w[x] + background) : (covered ? T(1) : T(0));
      }
    }
  }
}

// A few ranges per thread: scratch memory is taken once per range, and a slow thread gets fewer.
template <Isa isa>
int64_t view_grain(int64_t num_views, int num_threads) {
  return std::max<int64_t>(1, num_views / (4 * std::max(num_threads, 1)));
}

// The z-buffer of points of one pixel needs no canvas: it is drawn where it ends up.
template <Isa isa, typename T>
void draw_single_pixels(const Projected<isa, T>& view, const ProjectSpec& spec, const Image<T>& image) {
  const int64_t num_pixels = spec.H * spec.W;
  fill<isa>(image.depth, T(0), num_pixels);
  fill<isa>(image.coverage, T(0), num_pixels);
  fill<isa>(image.index, int32_t{-1}, num_pixels);
  for (int64_t n = 0; n < spec.N; ++n) {
    if (view.px[n] < 0) continue;
    const int64_t p = view.py[n] * spec.W + view.px[n];
    const T z = view.z[n], nearest = image.depth[p];
    if (nearest > 0 && z >= nearest) continue;  // 0 is empty: no drawn z is
    image.depth[p] = z;
    image.coverage[p] = T(1);
    image.index[p] = static_cast<int32_t>(n);
  }
}

template <Isa isa, int64_t L, ProjectMode mode, typename T>
void draw_views(const T* points, const T* world_to_cam, const T* intrinsics, T* depth, int32_t* index, T* coverage,
                int32_t* pixels, int64_t* dropped, T* weight_sum, const ProjectSpec& spec, int64_t begin, int64_t end) {
  constexpr bool kSums = mode != ProjectMode::zbuffer;
  constexpr bool kDirect = L == 1 && !kSums;
  const int64_t N = spec.N, num_pixels = spec.H * spec.W;
  const CanvasShape canvas = CanvasShape::of<isa>(spec, L);
  const int64_t size = kDirect ? 0 : canvas.size;
  Projected<isa, T> view(N);
  Footprint<isa, L, T> footprint(canvas);
  Scratch<isa, T> z_min(size), weights(kSums ? size : 0), sums(kSums ? size : 0);
  Scratch<isa, int32_t> nearest(size);
  for (int64_t b = begin; b < end; ++b) {
    dropped[b] = project_view(points + b / spec.V * N * 3, world_to_cam + b * 12, intrinsics + b * 9, spec, view);
    write_pixels(view, pixels + b * N * 2, N);
    const int64_t at = b * num_pixels;
    const Image<T> image{depth + at, coverage + at, kSums ? weight_sum + at : nullptr, index + at};
    if constexpr (kDirect) {
      draw_single_pixels(view, spec, image);
      continue;
    }
    draw_nearest<isa, L>(view, canvas, footprint.wx, N, z_min.get(), nearest.get());
    if constexpr (kSums) {
      accumulate<isa, L, mode>(view, canvas, footprint, spec, z_min.get(), weights.get(), sums.get());
    }
    write_image<isa, mode>(spec, canvas, z_min.get(), nearest.get(), weights.get(), sums.get(), image);
  }
}

// What each pixel passes back, on a canvas with zeros in the margins. soft: a point's share is its weight times Q + P
// (z
// - D), the derivative of the loss to the weight. harmonic: P / z^2.
template <Isa isa, typename T>
struct PixelGradients {
  PixelGradients(int64_t size, int64_t W) : values(4 * size), zeros(W) {
    P = values.get(), Q = P + size, D = Q + size, z_min = D + size;
    fill<isa>(P, T(0), 4 * size);
    fill<isa>(zeros.get(), T(0), W);
  }
  Scratch<isa, T> values, zeros;
  T *P, *Q, *D, *z_min;
};

template <Isa isa, typename T>
void pixel_gradients(const ProjectSpec& spec, const CanvasShape& canvas, const T* __restrict__ z, const T* grad_depth,
                     const T* grad_coverage, const T* depth, const int32_t* index, const T* weight_sum,
                     PixelGradients<isa, T>& out) {
  const T background = static_cast<T>(spec.background);
  const bool soft = spec.mode == ProjectMode::soft;
  for (int64_t y = 0; y < spec.H; ++y) {
    const int64_t from = y * spec.W, to = (y + spec.radius) * canvas.stride + spec.radius;
    const T* __restrict__ gd = grad_depth ? grad_depth + from : out.zeros.get();
    const T* __restrict__ gc = grad_coverage ? grad_coverage + from : out.zeros.get();
    const T* __restrict__ w = weight_sum + from, * __restrict__ d = depth + from;
    const int32_t* __restrict__ winner = index + from;
    T* __restrict__ P = out.P + to, * __restrict__ Q = out.Q + to, * __restrict__ D = out.D + to;
    T* __restrict__ z_min = out.z_min + to;
#pragma omp simd
    for (int64_t x = 0; x < spec.W; ++x) {
      const bool covered = w[x] > 0;
      const T per_w = gd[x] / (covered ? w[x] : T(1)), total = w[x] + background;
      const T p = soft ? per_w : per_w * d[x], q = (gc[x] * background) / (total * total);
      P[x] = covered ? p : T(0);
      Q[x] = covered ? q : T(0);
      D[x] = d[x];
      z_min[x] = z[winner[x] > 0 ? winner[x] : 0];  // any where nothing is covered
    }
  }
}

// The gradients to one point's (u, v, z).
template <typename T>
struct PointGradient {
  T u, v, z;
};

template <Isa isa, int64_t L, typename T>
PointGradient<T> gather_soft(const Footprint<isa, L, T>& footprint, const CanvasShape& canvas, const ProjectSpec& spec,
                             const PixelGradients<isa, T>& pixel, int64_t corner, T z) {
  const T per_temperature = static_cast<T>(1.0 / spec.temperature);
  const T per_variance = static_cast<T>(1.0 / (spec.sigma * spec.sigma));
  T du = 0, dv = 0, dz = 0, dw = 0;
  for (int64_t j = 0; j < canvas.padded; j += L) {
    T column[L] = {}, rows[L] = {}, direct[L] = {};  // w dL/dw; times dy; w P
    const T* __restrict__ wx = footprint.wx + j;
    for (int64_t i = 0; i < canvas.width; ++i) {
      const int64_t row = corner + i * canvas.stride + j;
      const T wy = footprint.wy[i], dy = footprint.dy[i];
      const T* __restrict__ P = pixel.P + row, * __restrict__ Q = pixel.Q + row, * __restrict__ D = pixel.D + row;
      const T* __restrict__ z_min = pixel.z_min + row;
#pragma omp simd
      for (int64_t l = 0; l < L; ++l) {
        const T w = (wx[l] * wy) * exp_negative<isa>((z_min[l] - z) * per_temperature);
        const T g = w * (P[l] * (z - D[l]) + Q[l]);
        column[l] += g;
        rows[l] += g * dy;
        direct[l] += w * P[l];
      }
    }
    for (int64_t l = 0; l < L; ++l) {
      du += column[l] * footprint.dx[j + l];
      dv += rows[l];
      dz += direct[l];
      dw += column[l];
    }
  }
  return {du * per_variance, dv * per_variance, dz - dw * per_temperature};
}

// The gradients of one view to (u, v, z) of its points, carried to the world's coordinates.
template <Isa isa, int64_t L, typename T>
void gather_view(const Projected<isa, T>& view, const CanvasShape& canvas, Footprint<isa, L, T>& footprint,
                 const ProjectSpec& spec, const PixelGradients<isa, T>& pixel, const T* m, const T* k, T* grad) {
  const T gaussian_scale = static_cast<T>(-0.5 / (spec.sigma * spec.sigma));
  for (int64_t n = 0; n < spec.N; ++n, grad += 3) {
    grad[0] = grad[1] = grad[2] = 0;
    if (view.px[n] < 0) continue;
    const T z = view.z[n], u = view.u[n], v = view.v[n];
    const int64_t corner = view.py[n] * canvas.stride + view.px[n];
    if (spec.mode == ProjectMode::soft) {
      footprint.gaussian(u, v, view.px[n], view.py[n], spec.radius, gaussian_scale);
      const PointGradient<T> g = gather_soft<isa, L>(footprint, canvas, spec, pixel, corner, z);
      const T gx = g.u * k[0] / z, gy = g.v * k[4] / z;
      const T gz = g.z - (g.u * (u - k[2]) + g.v * (v - k[5])) / z;
      for (int64_t a = 0; a < 3; ++a) grad[a] = (m[a] * gx + m[4 + a] * gy) + m[8 + a] * gz;
    } else {
      T total = 0;
      for (int64_t j = 0; j < canvas.width; ++j) {  // as the soft mode's sums run: down the columns, then across
        T column = 0;
        for (int64_t i = 0; i < canvas.width; ++i) column += pixel.P[corner + i * canvas.stride + j];
        total += column;
      }
      for (int64_t a = 0; a < 3; ++a) grad[a] = m[8 + a] * (total / (z * z));
    }
  }
}

// zbuffer: each pixel passes its gradient to its winner, in the order of the pixels.
template <Isa isa, typename T>
void scatter_winners(const ProjectSpec& spec, const T* grad_depth, const int32_t* index, const T* m, T* grad_z,
                     T* grad) {
  fill<isa>(grad_z, T(0), spec.N);
  for (int64_t p = 0; grad_depth && p < spec.H * spec.W; ++p) {
    if (index[p] >= 0) grad_z[index[p]] += grad_depth[p];
  }
  for (int64_t n = 0; n < spec.N; ++n) {
    for (int64_t a = 0; a < 3; ++a) grad[3 * n + a] = m[8 + a] * grad_z[n];
  }
}

template <Isa isa, int64_t L, typename T>
void differentiate_views(const T* grad_depth, const T* grad_coverage, const T* points, const T* world_to_cam,
                         const T* intrinsics, const T* depth, const int32_t* index, const T* weight_sum, T* grad_views,
                         const ProjectSpec& spec, int64_t begin, int64_t end) {
  const int64_t N = spec.N, num_pixels = spec.H * spec.W;
  const CanvasShape canvas = CanvasShape::of<isa>(spec, L);
  const bool zbuffer = spec.mode == ProjectMode::zbuffer;
  Projected<isa, T> view(N);
  Footprint<isa, L, T> footprint(canvas);
  PixelGradients<isa, T> pixel(zbuffer ? 0 : canvas.size, zbuffer ? 0 : spec.W);
  for (int64_t b = begin; b < end; ++b) {
    const int64_t at = b * num_pixels;
    const T *m = world_to_cam + b * 12, *k = intrinsics + b * 9;
    const T *gd = grad_depth ? grad_depth + at : nullptr, *gc = grad_coverage ? grad_coverage + at : nullptr;
    T* grad = grad_views + b * N * 3;
    if (zbuffer) {
      scatter_winners<isa>(spec, gd, index + at, m, view.z, grad);
      continue;
    }
    project_view(points + b / spec.V * N * 3, m, k, spec, view);
    pixel_gradients(spec, canvas, view.z, gd, gc, depth + at, index + at, weight_sum + at, pixel);
    gather_view<isa, L>(view, canvas, footprint, spec, pixel, m, k, grad);
  }
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

template <Isa isa, int64_t L, typename T>
auto draw_views_in(ProjectMode mode) {
  return mode == ProjectMode::zbuffer ? draw_views<isa, L, ProjectMode::zbuffer, T>
         : mode == ProjectMode::soft  ? draw_views<isa, L, ProjectMode::soft, T>
                                      : draw_views<isa, L, ProjectMode::harmonic, T>;
}

}  // namespace

template <Isa isa, typename T>
void project_points_cpu(const T* points, const T* world_to_cam, const T* intrinsics, T* depth, int32_t* index,
                        T* coverage, int32_t* pixels, int64_t* dropped, T* weight_sum, const ProjectSpec& spec,
                        int num_threads) {
  const auto draw = spec.radius == 0 ? draw_views_in<isa, 1, T>(spec.mode) : draw_views_in<isa, kLanes, T>(spec.mode);
  const int64_t num_views = spec.B * spec.V;
  parallel_for(num_views, view_grain<isa>(num_views, num_threads), num_threads, [&](int64_t begin, int64_t end) {
    draw(points, world_to_cam, intrinsics, depth, index, coverage, pixels, dropped, weight_sum, spec, begin, end);
  });
}

template <Isa isa, typename T>
void project_points_backward_cpu(const T* grad_depth, const T* grad_coverage, const T* points, const T* world_to_cam,
                                 const T* intrinsics, const T* depth, const int32_t* index, const T* weight_sum,
                                 T* grad_views, T* grad_points, const ProjectSpec& spec, int num_threads) {
  const auto differentiate = spec.radius == 0 ? differentiate_views<isa, 1, T> : differentiate_views<isa, kLanes, T>;
  const int64_t num_views = spec.B * spec.V;
  parallel_for(num_views, view_grain<isa>(num_views, num_threads), num_threads, [&](int64_t begin, int64_t end) {
    differentiate(grad_depth, grad_coverage, points, world_to_cam, intrinsics, depth, index, weight_sum, grad_views,
                  spec, begin, end);
  });
  const int64_t V = spec.V, count = spec.N * 3;
  parallel_for(spec.B, view_grain<isa>(spec.B, num_threads), num_threads, [=](int64_t begin, int64_t end) {
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
