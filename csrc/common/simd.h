// Vectors of the width of an instruction set, for the few loops that must hold many of them in registers. Arithmetic,
// comparison and ?: are the compiler's own (GCC and Clang); elsewhere a vector is one number and the same code runs.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/isa.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace jointmae {

template <Isa isa, typename T>
struct Simd {
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;  // as wide as T: the lanes correspond
#if defined(__GNUC__)
  static constexpr int64_t kBytes = isa == Isa::avx512 ? 64 : isa == Isa::avx2 ? 32 : 16;
  typedef T Vector __attribute__((vector_size(kBytes)));
  typedef Index IndexVector __attribute__((vector_size(kBytes)));
#else
  static constexpr int64_t kBytes = sizeof(T);
  using Vector = T;
  using IndexVector = Index;
#endif
  static constexpr int64_t kLanes = kBytes / static_cast<int64_t>(sizeof(T));

  static Vector broadcast(T value) { return Vector{} + value; }
  static IndexVector broadcast_index(Index value) { return IndexVector{} + value; }
  static Vector load(const T* from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
  }
  static IndexVector load_index(const Index* from) {
    IndexVector vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
  }
  static void store(T* to, Vector vector) { std::memcpy(to, &vector, sizeof vector); }
  static void store_index(Index* to, IndexVector vector) { std::memcpy(to, &vector, sizeof vector); }
  // The lowest lane.
  static T lowest(Vector vector) {
    T lanes[kLanes];
    store(lanes, vector);
    for (int64_t half = kLanes / 2; half > 0; half /= 2) {
      for (int64_t lane = 0; lane < half; ++lane) {
        lanes[lane] = lanes[lane + half] < lanes[lane] ? lanes[lane + half] : lanes[lane];
      }
    }
    return lanes[0];
  }

  // The first lane in which a equals b, kLanes if none does.
  static int64_t first_equal(Vector a, Vector b) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      return __builtin_ctz(_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ) | 1u << kLanes);
    } else {
      return __builtin_ctz(_mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ) | 1u << kLanes);
    }
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4) {
      return __builtin_ctz(static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ))) | 1u << kLanes);
    } else {
      return __builtin_ctz(static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_EQ_OQ))) | 1u << kLanes);
    }
#else
    T lanes_a[kLanes], lanes_b[kLanes];
    store(lanes_a, a);
    store(lanes_b, b);
    int64_t lane = 0;
    while (lane < kLanes && lanes_a[lane] != lanes_b[lane]) ++lane;
    return lane;
#endif
  }

  static int64_t round_up(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }
};

}  // namespace jointmae
