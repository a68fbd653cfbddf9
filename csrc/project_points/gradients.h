// The gradients of the modes that add up, to the points. Each point gathers from the pixels of its footprint: down its
// columns, then across them.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/scratch.h"
#include "project_points/blend.h"
#include "project_points/footprints.h"
#include "project_points/project_points.h"
#include "project_points/seen.h"

namespace jointmae {

// What forward gave for one view, [H, W], and what comes back, null for zeros.
template <Isa isa, typename T>
struct DrawnView {
  const T *grad_depth, *grad_coverage, *depth, *weight_sum;
  const int32_t* index;
};

// What each pixel of a canvas passes back. soft: a point's share is its weight, which the mantissa of the nearest point
// divides in P and Q, times Q + P (z - D), the derivative of the loss to it. harmonic: P / z^2.
template <Isa isa, typename T>
struct PixelGradients {
  template <int64_t kWidth>
  explicit PixelGradients(const Canvas<isa, T, kWidth>& canvas) : memory(4 * canvas.size()) {
    P = memory.get(), Q = P + canvas.size(), D = Q + canvas.size(), exponent = D + canvas.size();
    const int64_t height = canvas.rows.last - canvas.rows.first, margin = canvas.padded() - canvas.radius() - 1;
    for (T* values : {P, Q, D, exponent}) {
      for (int64_t y = 0; y < height; ++y) {  // the margins pass nothing
        fill<isa>(values + y * canvas.stride, T(0), canvas.radius());
        fill<isa>(values + (y + 1) * canvas.stride - margin, T(0), margin);
      }
    }
  }
  Scratch<isa, T> memory;
  T *P, *Q, *D, *exponent;
};

// Row y of the canvas.
template <Isa isa, typename T, int64_t kWidth>
void pixel_gradients(const DrawnView<isa, T>& view, const Seen<isa, T>& seen, const ProjectSpec& spec,
                     const Canvas<isa, T, kWidth> canvas, int64_t y, const PixelGradients<isa, T>& out) {
  const bool soft = spec.mode == ProjectMode::soft;
  const T background = static_cast<T>(spec.background), least = static_cast<T>(soft ? kLeastWeight : 0.0);
  for_each_run<isa>(view.weight_sum + y * spec.W, spec.W, [&](int64_t x, int64_t count, bool empty) {
    const int64_t from = y * spec.W + x, to = canvas.row(y) + x;
    const T* __restrict__ w = view.weight_sum + from, * __restrict__ depth = view.depth + from;
    const T* __restrict__ grad_depth = view.grad_depth + from, * __restrict__ grad_coverage = view.grad_coverage + from;
    const int32_t* __restrict__ winner = view.index + from;
    T* __restrict__ P = out.P + to, * __restrict__ Q = out.Q + to, * __restrict__ D = out.D + to;
    T* __restrict__ exponent = out.exponent + to;
    if (empty || !view.grad_depth) fill<isa>(P, T(0), count);
    if (empty || !view.grad_coverage) fill<isa>(Q, T(0), count);
    if (empty) {
      fill<isa>(D, T(0), count);  // weights may have underflowed: what points read here must be finite
      fill<isa>(exponent, T(0), count);
      return;
    }
    if (view.grad_depth) {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        const T per_w = grad_depth[i] / (w[i] > least ? w[i] : T(1)), p = soft ? per_w : per_w * depth[i];
        P[i] = w[i] > least ? p : T(0);
      }
    }
    if (!soft) return;
    if (view.grad_coverage) {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        const T total = w[i] + background, q = (grad_coverage[i] * background) / (total * total);
        Q[i] = w[i] > least ? q : T(0);
      }
    }
    const T* __restrict__ per_mantissas = seen.per_mantissa, * __restrict__ exponents = seen.exponent;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      const int32_t nearest = winner[i] > 0 ? winner[i] : 0;  // any where nothing is covered
      P[i] *= per_mantissas[nearest];
      Q[i] *= per_mantissas[nearest];
      D[i] = depth[i];
      exponent[i] = exponents[nearest];
    }
  });
}

// The gradients to (u, v, z) of points [N].
template <Isa isa, typename T>
struct SeenGradients {
  T *u, *v, *z;
  SeenGradients from(int64_t n) const { return {u + n, v + n, z + n}; }
};

template <Isa isa, typename T, int64_t kWidth>
void gather_soft(const Seen<isa, T>& seen, const int32_t* list, int64_t count, const ProjectSpec& spec,
                 const Canvas<isa, T, kWidth> canvas, const PixelGradients<isa, T>& pixel,
                 Footprints<isa, T, kWidth>& footprints, const SeenGradients<isa, T>& out) {
  using L = Lanes<isa, T>;
  const T per_temperature = static_cast<T>(1.0 / spec.temperature);
  const T per_variance = static_cast<T>(1.0 / (spec.sigma * spec.sigma));
  for (int64_t begin = 0; begin < count; begin += footprints.capacity()) {
    const int64_t size = std::min(footprints.capacity(), count - begin);
    footprints.compute(seen, list + begin, size, canvas);
    for (int64_t k = 0; k < size; ++k) {
      const int64_t n = list[begin + k];
      const auto exponent = L::broadcast(seen.exponent[n]);
      const T z = seen.z[n], *wy = footprints.wy(k), *dx = footprints.dx(k), *dy = footprints.dy(k);
      T du = 0, dv = 0, dz = 0, dw = 0;
      for (int64_t j = 0; j < canvas.width(); j += L::kLanes) {
        auto column = L::broadcast(0), rows = column, direct = column;  // w dL/dw; times dy; w P
        const auto wx = L::load(footprints.wx(k) + j) * seen.mantissa[n];
        canvas.for_each_row(seen.x[n] + j, seen.y[n], [&](int64_t i, int64_t at) {
          const auto P = L::load(pixel.P + at);
          const auto w = (wx * wy[i]) * L::power_of_two(exponent - L::load(pixel.exponent + at));
          const auto g = w * (P * (z - L::load(pixel.D + at)) + L::load(pixel.Q + at));
          column += g;
          rows += g * dy[i];
          direct += w * P;
        });
        T of_column[L::kLanes], of_rows[L::kLanes], of_direct[L::kLanes];
        L::store(of_column, column);
        L::store(of_rows, rows);
        L::store(of_direct, direct);
        for (int64_t l = 0; l < std::min(L::kLanes, canvas.width() - j); ++l) {
          du += of_column[l] * dx[j + l];
          dv += of_rows[l];
          dz += of_direct[l];
          dw += of_column[l];
        }
      }
      out.u[n] = du * per_variance;
      out.v[n] = dv * per_variance;
      out.z[n] = dz - dw * per_temperature;
    }
  }
}

template <Isa isa, typename T, int64_t kWidth>
void gather_harmonic(const Seen<isa, T>& seen, const int32_t* list, int64_t count, const Canvas<isa, T, kWidth> canvas,
                     const PixelGradients<isa, T>& pixel, const SeenGradients<isa, T>& out) {
  using L = Lanes<isa, T>;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t n = list[k];
    T total = 0;
    for (int64_t j = 0; j < canvas.width(); j += L::kLanes) {
      auto column = L::broadcast(0);
      canvas.for_each_row(seen.x[n] + j, seen.y[n], [&](int64_t, int64_t at) { column += L::load(pixel.P + at); });
      T of_column[L::kLanes];
      L::store(of_column, column);
      for (int64_t l = 0; l < std::min(L::kLanes, canvas.width() - j); ++l) total += of_column[l];
    }
    out.z[n] = total / (seen.z[n] * seen.z[n]);
  }
}

// Carries the gradients of points to the world's coordinates, zeros where they were dropped. grad [count, 3]
template <Isa isa, typename T>
void to_world(const Seen<isa, T>& seen, const SeenGradients<isa, T>& in, int64_t count, const T* m, const T* k,
              T* __restrict__ grad) {
  const T fx = k[0], cx = k[2], fy = k[4], cy = k[5];
  const T* __restrict__ u = seen.u, * __restrict__ v = seen.v, * __restrict__ z = seen.z;
  const T* __restrict__ du = in.u, * __restrict__ dv = in.v, * __restrict__ dz = in.z;
  const int32_t* __restrict__ pixel = seen.x;
#pragma omp simd
  for (int64_t n = 0; n < count; ++n) {
    const bool kept = pixel[n] >= 0;
    const T gx = du[n] * fx / z[n], gy = dv[n] * fy / z[n];
    const T gz = dz[n] - (du[n] * (u[n] - cx) + dv[n] * (v[n] - cy)) / z[n];
    const T x = (m[0] * gx + m[4] * gy) + m[8] * gz;
    const T y = (m[1] * gx + m[5] * gy) + m[9] * gz;
    const T z_world = (m[2] * gx + m[6] * gy) + m[10] * gz;
    grad[3 * n] = kept ? x : T(0);
    grad[3 * n + 1] = kept ? y : T(0);
    grad[3 * n + 2] = kept ? z_world : T(0);
  }
}

// As above for gradients to z alone, which are 0 where points were dropped.
template <Isa isa, typename T>
void along_axis(const T* __restrict__ dz, int64_t count, const T* m, T* __restrict__ grad) {
#pragma omp simd
  for (int64_t n = 0; n < count; ++n) {
    grad[3 * n] = m[8] * dz[n];
    grad[3 * n + 1] = m[9] * dz[n];
    grad[3 * n + 2] = m[10] * dz[n];
  }
}

// zbuffer: each pixel passes its gradient to its winner, in the order of the pixels.
template <Isa isa, typename T>
void scatter_winners(const T* __restrict__ grad_depth, const int32_t* __restrict__ index, int64_t num_pixels,
                     T* __restrict__ dz) {
  constexpr int64_t kRun = 32;
  for (int64_t p = 0; p < num_pixels; p += kRun) {
    const int64_t count = std::min(kRun, num_pixels - p);
    int32_t all = -1;
#pragma omp simd reduction(& : all)
    for (int64_t i = 0; i < count; ++i) all &= index[p + i];
    if (all == -1) continue;  // all of them are
    for (int64_t i = 0; i < count; ++i) {
      if (index[p + i] >= 0) dz[index[p + i]] += grad_depth[p + i];
    }
  }
}

}  // namespace jointmae
