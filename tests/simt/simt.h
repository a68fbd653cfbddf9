// CUDA's words for g++: the kernels of csrc/ compile against this in place of CUDA's headers, and run on the CPU, each
// thread of a block as a fiber. A fiber runs until it meets others at a barrier or in a warp's word (a shuffle, a vote,
// a reduction), then another one is chosen, in an order that `set_order` decides. What is wrong on a GPU and can be
// seen here stops the launch with an error: threads that wait for ever, lanes that meet in different words or with
// different masks, threads that have exited while others wait for them, writes beyond the shared memory.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "common/stream.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

#define SIMT_VECTOR(scalar, name)                                                   \
  struct alignas(2 * sizeof(scalar)) name##2 { scalar x, y; };                      \
  struct name##3 { scalar x, y, z; };                                               \
  struct alignas(16) name##4 { scalar x, y, z, w; };                                \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }              \
  inline name##3 make_##name##3(scalar x, scalar y, scalar z) { return {x, y, z}; } \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
SIMT_VECTOR(float, float)
SIMT_VECTOR(int, int)
SIMT_VECTOR(unsigned, uint)
#undef SIMT_VECTOR

namespace simt {

enum class Word {
  syncwarp,
  shfl,
  shfl_up,
  shfl_down,
  shfl_xor,
  ballot,
  any,
  all,
  match_any,
  reduce_min_unsigned,
  reduce_max_unsigned,
  reduce_add,
  reduce_and,
  reduce_or,
  reduce_xor,
  reduce_min_int,
  reduce_max_int,
};
enum class Barrier { block, block_count, block_and, block_or, cluster, grid };

// Of the thread that runs.
struct Position {
  dim3 thread, block, block_size, grid_size;
};
extern Position here;

// What a lane gets when all lanes of `mask` have come to the same word. `value` is what it brings.
uint64_t meet_in_warp(Word word, unsigned mask, uint64_t value, int parameter, int width);
// What a thread gets when all threads of its block, cluster or grid have come to the same barrier.
int meet_at(Barrier barrier, int predicate);
// Lets other threads run, now and then, around an atomic operation.
void maybe_yield();

unsigned char* shared_memory();
unsigned cluster_rank();
unsigned char* cluster_shared(unsigned char* mine, unsigned rank);

struct Shape {
  int64_t num_blocks;
  int threads;
  int64_t shared_bytes;
  int cluster_size;
  bool all_blocks_at_once;
};
// Runs a launch to its end; throws std::runtime_error with what went wrong.
void run(const char* name, const Shape& shape, const std::function<void()>& thread);

// 0: threads and blocks in ascending order; 1: descending; any other: shuffled by this seed.
void set_order(uint64_t order);

struct Limits {
  int num_sms, max_shared_bytes, capability;
};
extern Limits limits;

template <typename T>
uint64_t to_bits(T value) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <typename T>
T shuffle(Word word, unsigned mask, T value, int parameter, int width) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles take 32 or 64 bits");
  return from_bits<T>(meet_in_warp(word, mask, to_bits(value), parameter, width));
}

// Reads, changes and writes with nothing between; returns what was there.
template <typename T, typename Change>
T atomic(T* address, Change&& change) {
  maybe_yield();
  const T before = *address;
  *address = change(before);
  return before;
}

}  // namespace simt

#define threadIdx (::simt::here.thread)
#define blockIdx (::simt::here.block)
#define blockDim (::simt::here.block_size)
#define gridDim (::simt::here.grid_size)

inline void __syncthreads() { simt::meet_at(simt::Barrier::block, 0); }
inline int __syncthreads_count(int predicate) { return simt::meet_at(simt::Barrier::block_count, predicate != 0); }
inline int __syncthreads_and(int predicate) { return simt::meet_at(simt::Barrier::block_and, predicate != 0); }
inline int __syncthreads_or(int predicate) { return simt::meet_at(simt::Barrier::block_or, predicate != 0); }
inline void __threadfence() {}
inline void __threadfence_block() {}

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) { simt::meet_in_warp(simt::Word::syncwarp, mask, 0, 0, 32); }
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return simt::shuffle(simt::Word::shfl, mask, value, source, width);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return simt::shuffle(simt::Word::shfl_up, mask, value, static_cast<int>(delta), width);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return simt::shuffle(simt::Word::shfl_down, mask, value, static_cast<int>(delta), width);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  return simt::shuffle(simt::Word::shfl_xor, mask, value, lane_mask, width);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return static_cast<unsigned>(simt::meet_in_warp(simt::Word::ballot, mask, predicate != 0, 0, 32));
}
inline int __any_sync(unsigned mask, int predicate) {
  return static_cast<int>(simt::meet_in_warp(simt::Word::any, mask, predicate != 0, 0, 32));
}
inline int __all_sync(unsigned mask, int predicate) {
  return static_cast<int>(simt::meet_in_warp(simt::Word::all, mask, predicate != 0, 0, 32));
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value) {
  return static_cast<unsigned>(simt::meet_in_warp(simt::Word::match_any, mask, simt::to_bits(value), 0, 32));
}

#define SIMT_REDUCE(name, type, word)                                                                      \
  inline type __reduce_##name##_sync(unsigned mask, type value) {                                          \
    return simt::from_bits<type>(simt::meet_in_warp(simt::Word::word, mask, simt::to_bits(value), 0, 32)); \
  }
SIMT_REDUCE(min, unsigned, reduce_min_unsigned)
SIMT_REDUCE(max, unsigned, reduce_max_unsigned)
SIMT_REDUCE(min, int, reduce_min_int)
SIMT_REDUCE(max, int, reduce_max_int)
SIMT_REDUCE(add, unsigned, reduce_add)
SIMT_REDUCE(add, int, reduce_add)
SIMT_REDUCE(and, unsigned, reduce_and)
SIMT_REDUCE(or, unsigned, reduce_or)
SIMT_REDUCE(xor, unsigned, reduce_xor)
#undef SIMT_REDUCE

// Integers only: the order of floating-point atomics, and so their bits, would be open.
#define SIMT_ATOMIC(name, type, expression)                                     \
  inline type name(type* address, type value) {                                 \
    return simt::atomic(address, [=](type old) -> type { return expression; }); \
  }
#define SIMT_ATOMICS(type)                                                                 \
  SIMT_ATOMIC(atomicAdd, type, old + value)                                                \
  SIMT_ATOMIC(atomicMin, type, value < old ? value : old)                                  \
  SIMT_ATOMIC(atomicMax, type, old < value ? value : old)                                  \
  SIMT_ATOMIC(atomicAnd, type, old& value)                                                 \
  SIMT_ATOMIC(atomicOr, type, old | value)                                                 \
  SIMT_ATOMIC(atomicXor, type, old ^ value)                                                \
  SIMT_ATOMIC(atomicExch, type, ((void)old, value))                                        \
  inline type atomicCAS(type* address, type expected, type value) {                        \
    return simt::atomic(address, [=](type old) { return old == expected ? value : old; }); \
  }
SIMT_ATOMICS(int)
SIMT_ATOMICS(unsigned)
SIMT_ATOMICS(unsigned long long)
#undef SIMT_ATOMICS
SIMT_ATOMIC(atomicMin, long long, value < old ? value : old)
SIMT_ATOMIC(atomicMax, long long, old < value ? value : old)
#undef SIMT_ATOMIC

#define SIMT_MIN_MAX(type)                                  \
  inline type min(type a, type b) { return b < a ? b : a; } \
  inline type max(type a, type b) { return a < b ? b : a; }
SIMT_MIN_MAX(int)
SIMT_MIN_MAX(unsigned)
SIMT_MIN_MAX(long)
SIMT_MIN_MAX(unsigned long)
SIMT_MIN_MAX(long long)
SIMT_MIN_MAX(unsigned long long)
#undef SIMT_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }
inline int __clzll(long long bits) { return bits == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(bits)); }
inline unsigned __brev(unsigned bits) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (bits >> i & 1u) << (31 - i);
  return reversed;
}

inline unsigned __float_as_uint(float value) { return simt::from_bits<unsigned>(simt::to_bits(value)); }
inline int __float_as_int(float value) { return simt::from_bits<int>(simt::to_bits(value)); }
inline float __uint_as_float(unsigned bits) { return simt::from_bits<float>(bits); }
inline float __int_as_float(int bits) { return simt::from_bits<float>(simt::to_bits(bits)); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }

template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcs(const T* address) {
  return *address;
}
template <typename T>
void __stcs(T* address, T value) {
  *address = value;
}

namespace jointmae {

struct LaunchShape {
  int64_t num_blocks;
  int threads;
  int64_t shared_bytes = 0;
  int cluster_size = 1;
  bool all_blocks_at_once = false;
};

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const LaunchShape& shape, const Stream&,
            Arguments&&... arguments) {
  const std::tuple<Parameters...> values(static_cast<Parameters>(std::forward<Arguments>(arguments))...);
  simt::run(name, {shape.num_blocks, shape.threads, shape.shared_bytes, shape.cluster_size, shape.all_blocks_at_once},
            [&] { std::apply(kernel, values); });
}

struct DeviceLimits {
  int num_sms;
  int max_shared_bytes;
  int capability;
};

inline DeviceLimits device_limits(const Stream&) {
  return {simt::limits.num_sms, simt::limits.max_shared_bytes, simt::limits.capability};
}

template <typename... Parameters>
int64_t resident_blocks(void (*)(Parameters...), int, int64_t, const Stream&) {
  return simt::limits.num_sms;
}

template <typename... Parameters>
int64_t resident_clusters(void (*)(Parameters...), const LaunchShape& shape, const Stream&) {
  return simt::limits.num_sms / shape.cluster_size;
}

template <typename T>
T* shared_memory() {
  return reinterpret_cast<T*>(simt::shared_memory());
}

inline void grid_sync() { simt::meet_at(simt::Barrier::grid, 0); }
inline void cluster_sync() { simt::meet_at(simt::Barrier::cluster, 0); }
inline unsigned cluster_rank() { return simt::cluster_rank(); }
template <typename T>
T* cluster_shared(T* mine, unsigned rank) {
  return reinterpret_cast<T*>(simt::cluster_shared(reinterpret_cast<unsigned char*>(mine), rank));
}

}  // namespace jointmae
