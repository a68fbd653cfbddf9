// Vectors of the width of an instruction set, for the few loops that must hold many of them in registers. Arithmetic,
// comparison and ?: are the compiler's own (GCC and Clang); elsewhere a vector is one number and the same code runs.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "common/isa.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define JOINTMAE_SHUFFLE
#endif
#endif

namespace jointmae {

template <Isa isa>
inline constexpr int64_t kVectorBytes = isa == Isa::avx512 ? 64
                                        : isa == Isa::avx2 ? 32
                                                           : 16;

// `bytes` may be less than the instruction set has; what asks for intrinsics is for its own width only.
template <Isa isa, typename T, int64_t bytes = kVectorBytes<isa>>
struct Simd {
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;  // as wide as T: the lanes correspond
#if defined(__GNUC__)
  static constexpr int64_t kBytes = bytes;
  typedef T Vector __attribute__((vector_size(kBytes)));
  typedef Index IndexVector __attribute__((vector_size(kBytes)));
  typedef std::make_unsigned_t<Index> UnsignedVector __attribute__((vector_size(kBytes)));
#else
  static constexpr int64_t kBytes = sizeof(T);
  using Vector = T;
  using IndexVector = Index;
  using UnsignedVector = std::make_unsigned_t<Index>;
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

  // 2^exponent for whole numbers up to 0; 0 where that is no normal number, anything for numbers above 0.
  static Vector power_of_two(Vector exponent) {
    constexpr T kLowest = sizeof(T) == 4 ? T(-127) : T(-1023);
    constexpr T kShift = sizeof(T) == 4 ? T(12582912 + 127) : T(6755399441055744 + 1023);
    const Vector shifted = (exponent > kLowest ? exponent : broadcast(kLowest)) + kShift;
    UnsignedVector bits;  // the biased exponent is in the lowest ones
    std::memcpy(&bits, &shifted, sizeof bits);
    bits <<= sizeof(T) == 4 ? 23 : 52;
    Vector power;
    std::memcpy(&power, &bits, sizeof power);
    return power;
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

  // Of each lane the larger or the smaller number; `b` where one is NaN.
  static Vector larger(Vector a, Vector b) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return _mm512_maskz_max_ps(0xFFFF, a, b);  // GCC warns of the plain one
#endif
    return a > b ? a : b;
  }
  static Vector smaller(Vector a, Vector b) { return a < b ? a : b; }

  // The highest lane, in every lane.
  static Vector highest_everywhere(Vector vector) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      vector = larger(vector, _mm512_maskz_shuffle_f32x4(0xFFFF, vector, vector, 0x4E));
      vector = larger(vector, _mm512_maskz_shuffle_f32x4(0xFFFF, vector, vector, 0xB1));
      vector = larger(vector, _mm512_maskz_permute_ps(0xFFFF, vector, 0x4E));
      return larger(vector, _mm512_maskz_permute_ps(0xFFFF, vector, 0xB1));
    } else {
      vector = larger(vector, _mm512_maskz_shuffle_f64x2(0xFF, vector, vector, 0x4E));
      vector = larger(vector, _mm512_maskz_shuffle_f64x2(0xFF, vector, vector, 0xB1));
      return larger(vector, _mm512_maskz_permute_pd(0xFF, vector, 0x55));
    }
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4) {
      vector = larger(vector, _mm256_permute2f128_ps(vector, vector, 1));
      vector = larger(vector, _mm256_permute_ps(vector, 0x4E));
      return larger(vector, _mm256_permute_ps(vector, 0xB1));
    } else {
      vector = larger(vector, _mm256_permute2f128_pd(vector, vector, 1));
      return larger(vector, _mm256_permute_pd(vector, 0x5));
    }
#elif defined(__SSE2__)
    if constexpr (sizeof(T) == 4) {
      vector = larger(vector, _mm_shuffle_ps(vector, vector, 0x4E));
      return larger(vector, _mm_shuffle_ps(vector, vector, 0xB1));
    } else {
      return larger(vector, _mm_shuffle_pd(vector, vector, 1));
    }
#else
    T lanes[kLanes];
    store(lanes, vector);
    for (int64_t lane = 1; lane < kLanes; ++lane) lanes[0] = lanes[lane] > lanes[0] ? lanes[lane] : lanes[0];
    return broadcast(lanes[0]);
#endif
  }
  // The highest lane.
  static T highest(Vector vector) { return first(highest_everywhere(vector)); }
  static T first(Vector vector) {
    T lanes[kLanes];
    store(lanes, vector);
    return lanes[0];
  }

  // The place of the lowest bit that is set; there is one.
  static int64_t lowest_bit(uint64_t bits) {
#if defined(__GNUC__)
    return __builtin_ctzll(bits);
#else
    int64_t place = 0;
    while (!(bits >> place & 1)) ++place;
    return place;
#endif
  }

  // The lowest lane.
  static T lowest(Vector vector) { return -highest(-vector); }
  static int64_t sum(IndexVector vector) {
    Index lanes[kLanes];
    store_index(lanes, vector);
    int64_t sum = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
    return sum;
  }

  // `count` with 1 added to the lanes where a < b.
  static IndexVector add_where_less(Vector a, Vector b, IndexVector count) {
#if defined(__AVX512F__)
    const auto counts = reinterpret_cast<__m512i>(count), ones = reinterpret_cast<__m512i>(broadcast_index(1));
    if constexpr (sizeof(T) == 4) {
      return reinterpret_cast<IndexVector>(
          _mm512_mask_add_epi32(counts, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), counts, ones));
    } else {
      return reinterpret_cast<IndexVector>(
          _mm512_mask_add_epi64(counts, _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ), counts, ones));
    }
#elif defined(__GNUC__)
    return count - (a < b);
#else
    return count + (a < b ? 1 : 0);
#endif
  }

  // How many bits are set, of as many as there are lanes.
  static int64_t count(unsigned bits) {
    if constexpr (kLanes <= 4) {
      return 0x4332322132212110u >> 4 * bits & 7;
    } else {
      return __builtin_popcount(bits);
    }
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

  // Bit `lane` is set where a < b; neither is NaN.
  static unsigned less(Vector a, Vector b) { return ~at_most(b, a) & ((1u << kLanes) - 1); }

  // The lanes of `index` whose bit is set, written in order to `to`, which has room for a whole vector; their number.
  static int64_t compress_index(unsigned bits, IndexVector index, Index* to) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      const __m512i lanes = reinterpret_cast<__m512i>(index);
      _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), lanes));
    } else {
      const __m512i lanes = reinterpret_cast<__m512i>(index);
      _mm512_storeu_si512(to, _mm512_maskz_compress_epi64(static_cast<__mmask8>(bits), lanes));
    }
    return __builtin_popcount(bits);
#else
    Index lanes[kLanes];
    store_index(lanes, index);
    int64_t count = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      to[count] = lanes[lane];
      count += bits >> lane & 1;
    }
    return count;
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
  static int64_t first_equal(Vector a, Vector b) { return lowest_bit((at_most(a, b) & at_most(b, a)) | 1u << kLanes); }

  // 0, 1, 2...
  static IndexVector ascending() {
    Index lanes[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = static_cast<Index>(lane);
    return load_index(lanes);
  }

  // Lane `c` of row `r` becomes lane `r` of row `c`.
  static void transpose(Vector (&rows)[kLanes]) { transpose_halves<kLanes / 2>(rows); }

  static int64_t round_up(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

 private:
  // Of each square of 2 * half rows and lanes, two quarters change places; then the same within the quarters.
  template <int64_t half>
  static void transpose_halves(Vector (&rows)[kLanes]) {
    if constexpr (half > 0) {
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC unroll 16
#endif
      for (int64_t r = 0; r < kLanes; ++r) {
        if (r & half) continue;
        const Vector a = rows[r], b = rows[r + half];
        rows[r] = quarters<half, 0>(a, b, std::make_integer_sequence<int64_t, kLanes>{});
        rows[r + half] = quarters<half, half>(a, b, std::make_integer_sequence<int64_t, kLanes>{});
      }
      transpose_halves<half / 2>(rows);
    }
  }

  template <int64_t half, int64_t begin, int64_t... lane>
  static Vector quarters(Vector a, Vector b, std::integer_sequence<int64_t, lane...>) {
#if defined(JOINTMAE_SHUFFLE)
    return __builtin_shufflevector(a, b, (begin + (lane & half ? lane - half + kLanes : lane))...);
#else
    T from[2 * kLanes], to[kLanes];
    store(from, a);
    store(from + kLanes, b);
    ((to[lane] = from[begin + (lane & half ? lane - half + kLanes : lane)]), ...);
    return load(to);
#endif
  }
};

}  // namespace jointmae
