// Vectors of the width of an instruction set, for the few loops that must hold many of them in registers. Arithmetic,
// comparison and ?: are the compiler's own (GCC and Clang); elsewhere a vector is one number and the same code runs.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/isa.h"

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
  static int64_t round_up(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }
};

}  // namespace jointmae
