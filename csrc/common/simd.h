// Vectors of the width of an instruction set, for the few loops that must hold many of them in registers. Arithmetic,
// comparison and ?: are the compiler's own (GCC and Clang); elsewhere a vector is one number and the same code runs.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/isa.h"

#if defined(__SSE2__)
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

  static Vector broadcast(T value) { return value - Vector{}; }  // not a sum, which would have to turn -0 into 0
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

  // The same bits, or the numbers of an index vector.
  static IndexVector bits_of(Vector vector) {
    IndexVector bits;
    std::memcpy(&bits, &vector, sizeof bits);
    return bits;
  }
  static Vector of_bits(IndexVector bits) {
    Vector vector;
    std::memcpy(&vector, &bits, sizeof vector);
    return vector;
  }
  static Vector of_index(IndexVector index) {
#if defined(__GNUC__)
    return __builtin_convertvector(index, Vector);
#else
    return static_cast<Vector>(index);
#endif
  }

  // a > b ? a : b, so b where one is NaN.
  static Vector higher(Vector a, Vector b) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return _mm512_maskz_max_ps(0xffff, a, b);  // GCC warns of the plain one
#endif
    return a > b ? a : b;
  }

  // a * b + c, rounded once where the processor can; for what needs no bits that are the same at every level.
  static Vector fma(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      return _mm512_fmadd_ps(a, b, c);
    } else {
      return _mm512_fmadd_pd(a, b, c);
    }
#elif defined(__FMA__)
    if constexpr (sizeof(T) == 4) {
      return _mm256_fmadd_ps(a, b, c);
    } else {
      return _mm256_fmadd_pd(a, b, c);
    }
#else
    return a * b + c;
#endif
  }

  // Swaps lanes and vectors: afterwards lane i of rows[j] is what lane j of rows[i] was.
  static void transpose(Vector (&rows)[kLanes]) {
#if defined(__GNUC__) && !defined(__clang__)
    swap_blocks<1>(rows);
#else
    T from[kLanes][kLanes], to[kLanes][kLanes];
    for (int64_t row = 0; row < kLanes; ++row) store(from[row], rows[row]);
    for (int64_t row = 0; row < kLanes; ++row) {
      for (int64_t lane = 0; lane < kLanes; ++lane) to[row][lane] = from[lane][row];
    }
    for (int64_t row = 0; row < kLanes; ++row) rows[row] = load(to[row]);
#endif
  }

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

  // Bit `lane` is set where a <= b.
  static unsigned at_most(Vector a, Vector b) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ);
    } else {
      return _mm512_cmp_pd_mask(a, b, _CMP_LE_OQ);
    }
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4) {
      return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LE_OQ)));
    } else {
      return static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_LE_OQ)));
    }
#elif defined(__SSE2__)
    if constexpr (sizeof(T) == 4) {
      return static_cast<unsigned>(_mm_movemask_ps(_mm_cmple_ps(a, b)));
    } else {
      return static_cast<unsigned>(_mm_movemask_pd(_mm_cmple_pd(a, b)));
    }
#else
    T lanes_a[kLanes], lanes_b[kLanes];
    store(lanes_a, a);
    store(lanes_b, b);
    unsigned bits = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) bits |= (lanes_a[lane] <= lanes_b[lane] ? 1u : 0u) << lane;
    return bits;
#endif
  }

  // The lanes of `vector` and of `index` whose bit is set, written in order to `to` and `to_index`, which have room for
  // a whole vector; returns their number.
  static int64_t compress(unsigned bits, Vector vector, IndexVector index, T* to, Index* to_index) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      _mm512_storeu_ps(to, _mm512_maskz_compress_ps(static_cast<__mmask16>(bits), vector));
      const __m512i kept = _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), reinterpret_cast<__m512i>(index));
      _mm512_storeu_si512(to_index, kept);
    } else {
      _mm512_storeu_pd(to, _mm512_maskz_compress_pd(static_cast<__mmask8>(bits), vector));
      const __m512i kept = _mm512_maskz_compress_epi64(static_cast<__mmask8>(bits), reinterpret_cast<__m512i>(index));
      _mm512_storeu_si512(to_index, kept);
    }
    return __builtin_popcount(bits);
#else
    T lanes[kLanes];
    Index index_lanes[kLanes];
    store(lanes, vector);
    store_index(index_lanes, index);
    int64_t count = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      to[count] = lanes[lane];
      to_index[count] = index_lanes[lane];
      count += bits >> lane & 1;
    }
    return count;
#endif
  }

  // The first lane in which a equals b, kLanes if none does.
  static int64_t first_equal(Vector a, Vector b) {
    const unsigned bits = at_most(a, b) & at_most(b, a);
    int64_t lane = 0;
#if defined(__GNUC__)
    lane = __builtin_ctz(bits | 1u << kLanes);
#else
    while (lane < kLanes && !(bits >> lane & 1)) ++lane;
#endif
    return lane;
  }

  // 0, 1, 2...
  static IndexVector ascending() {
    Index lanes[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = static_cast<Index>(lane);
    return load_index(lanes);
  }

  static int64_t round_up(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

#if defined(__GNUC__) && !defined(__clang__)
 private:
  // Swaps the off-diagonal blocks of `size` in every square of 2 * size rows and lanes, then those of larger sizes.
  template <int64_t size>
  static void swap_blocks(Vector (&rows)[kLanes]) {
    const IndexVector lane = ascending(), upper = (lane & static_cast<Index>(size)) != 0;
    const IndexVector of_a = upper ? lane + static_cast<Index>(kLanes - size) : lane;
    const IndexVector of_b = upper ? lane + static_cast<Index>(kLanes) : lane + static_cast<Index>(size);
#pragma GCC unroll 16
    for (int64_t row = 0; row < kLanes; ++row) {
      if (row & size) continue;
      const Vector a = rows[row], b = rows[row + size];
      rows[row] = __builtin_shuffle(a, b, of_a);
      rows[row + size] = __builtin_shuffle(a, b, of_b);
    }
    if constexpr (2 * size < kLanes) swap_blocks<2 * size>(rows);
  }
#endif
};

}  // namespace jointmae
