// The modes that add up the points of a pixel. N points, W x H pixels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common/isa.h"
#include "project_points/footprints.h"
#include "project_points/project_points.h"
#include "project_points/seen.h"

namespace jointmae {

// soft: adds the weights w of the points of `list` and w * z, in their order. `exponents` are those of the pixels'
// nearest points, by whose mantissas w has still to be divided.
template <Isa isa, typename T, int64_t kWidth>
void add_soft(const Seen<isa, T>& seen, const int32_t* list, int64_t count, const Canvas<isa, T, kWidth> canvas,
              const T* exponents, Footprints<isa, T, kWidth>& footprints, T* weights, T* sums) {
  using L = Lanes<isa, T>;
  const auto nothing = L::broadcast(-std::numeric_limits<T>::infinity());
  for (int64_t begin = 0; begin < count; begin += footprints.capacity()) {
    const int64_t size = std::min(footprints.capacity(), count - begin);
    footprints.compute(seen, list + begin, size, canvas);
    for (int64_t k = 0; k < size; ++k) {
      const int64_t n = list[begin + k];
      const T z = seen.z[n], *wy = footprints.wy(k);
      for (int64_t j = 0; j < canvas.padded(); j += L::kLanes) {
        const auto wx = L::load(footprints.wx(k) + j) * seen.mantissa[n];
        const auto exponent = L::load(footprints.inside() + j) > T(0) ? L::broadcast(seen.exponent[n]) : nothing;
        canvas.for_each_row(seen.x[n] + j, seen.y[n], [&](int64_t i, int64_t at) {
          const auto w = (wx * wy[i]) * L::power_of_two(exponent - L::load(exponents + at));
          L::store(weights + at, L::load(weights + at) + w);
          L::store(sums + at, L::load(sums + at) + w * z);
        });
      }
    }
  }
}

// harmonic: adds 1 / z and 1.
template <Isa isa, typename T, int64_t kWidth>
void add_harmonic(const Seen<isa, T>& seen, const int32_t* list, int64_t count, const Canvas<isa, T, kWidth> canvas,
                  const T* inside, T* weights, T* sums) {
  using L = Lanes<isa, T>;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t n = list[k];
    const T per_z = T(1) / seen.z[n];
    for (int64_t j = 0; j < canvas.padded(); j += L::kLanes) {
      const auto one = L::load(inside + j), w = one * per_z;
      canvas.for_each_row(seen.x[n] + j, seen.y[n], [&](int64_t, int64_t at) {
        L::store(weights + at, L::load(weights + at) + w);
        L::store(sums + at, L::load(sums + at) + one);
      });
    }
  }
}

// Calls body(x, count, empty) for runs of the pixels of a row, where `empty` says that all their weights are 0: there
// is nothing to divide. The number of pixels is a constant but for the last run.
template <Isa isa, typename T, typename Body>
void for_each_run(const T* weights, int64_t W, const Body& body) {
  using S = Simd<isa, T>;
  constexpr unsigned kAll = static_cast<unsigned>((uint64_t{1} << S::kLanes) - 1);
  int64_t x = 0;
  for (; x + S::kLanes <= W; x += S::kLanes) {
    body(x, S::kLanes, S::at_most(S::load(weights + x), S::broadcast(0)) == kAll);
  }
  if (x < W) body(x, W - x, false);
}

// A row of the outputs, from the sums of its pixels, whose weights are multiplied by those numbers of the pixels'
// nearest points. harmonic has none of them, and no coverage.
template <Isa isa, typename T, typename Index>
void write_blended_row(const T* weights, const T* sums, int64_t W, const Index* nearest, const T* per_mantissa,
                       T background, T* depth, T* coverage, T* weight_sum) {
  for_each_run<isa>(weights, W, [=](int64_t x, int64_t count, bool empty) {
    const T* __restrict__ w = weights + x, * __restrict__ s = sums + x;
    const Index* __restrict__ winner = nearest + x;
    T* __restrict__ d = depth + x, * __restrict__ total = weight_sum + x, * __restrict__ c = coverage + x;
    if (empty) {  // and so are the sums
      fill<isa>(d, T(0), count);
      fill<isa>(total, T(0), count);
      if (coverage) fill<isa>(c, T(0), count);
      return;
    }
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) d[i] = s[i] / (w[i] > 0 ? w[i] : T(1));
    if (!coverage) {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) total[i] = w[i];
      return;
    }
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      total[i] = w[i] * per_mantissa[winner[i] > 0 ? winner[i] : 0];
      c[i] = total[i] / (total[i] + background);
    }
  });
}

}  // namespace jointmae
