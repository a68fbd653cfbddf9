// Both ways one thread per vector of a row: forward of up to 16 bytes, backward of 4 channels where they lie aligned.
// A block has a tile: whole rows of one cloud, or one row where that is long.
#include <cstddef>

#include "common/cuda.h"
#include "common/inverse_index.h"
#include "group/group.h"

namespace jointmae {
namespace {

constexpr int kThreads = 256;
constexpr int kAhead = 4;  // loads in flight per thread
constexpr int kTile = kThreads * kAhead;
constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;

// B clouds of `rows` rows of `vectors` vectors, at least one each, cut into tiles.
struct Tiles {
  Tiles(int64_t B, int64_t rows, int64_t vectors)
      : rows(rows), vectors(vectors), rows_per_tile(vectors < kTile ? static_cast<int>(kTile / vectors) : 1) {
    per_cloud = ceil_div<int64_t>(rows, rows_per_tile);
    count = B * per_cloud;
  }
  LaunchShape shape() const { return {count < kMaxBlocks ? count : kMaxBlocks, kThreads}; }

  int64_t rows, vectors, per_cloud, count;
  int rows_per_tile;
};

// The row, within the tile, of its vector i.
__device__ __forceinline__ int row_of(int64_t i, const Tiles& tiles) {
  return tiles.rows_per_tile == 1 ? 0
                                  : static_cast<int>(static_cast<unsigned>(i) / static_cast<unsigned>(tiles.vectors));
}

// Calls body(b, first row, number of vectors) for each tile of this block.
template <typename Body>
__device__ __forceinline__ void for_each_tile(const Tiles& tiles, Body&& body) {
  for (int64_t tile = blockIdx.x; tile < tiles.count; tile += gridDim.x) {
    const int64_t b = tile / tiles.per_cloud, first = tile % tiles.per_cloud * tiles.rows_per_tile;
    const int64_t left = tiles.rows - first;
    body(b, first, (left < tiles.rows_per_tile ? left : tiles.rows_per_tile) * tiles.vectors);
  }
}

template <typename Vector>
__device__ __forceinline__ Vector all_ones() {
  if constexpr (sizeof(Vector) == sizeof(uint4)) {
    return make_uint4(~0u, ~0u, ~0u, ~0u);
  } else if constexpr (sizeof(Vector) == sizeof(uint2)) {
    return make_uint2(~0u, ~0u);
  } else {
    return static_cast<Vector>(~0u);
  }
}

// Consecutive threads have consecutive vectors of `out`.
template <typename Vector>
__global__ void __launch_bounds__(kThreads, 2)
    group_kernel(const Vector* __restrict__ features,  // [B, N, tiles.vectors]
                 const int64_t* __restrict__ indices,  // [B, R]
                 Vector* __restrict__ out,             // [B, R, tiles.vectors]
                 int64_t N, Tiles tiles) {
  for_each_tile(tiles, [&](int64_t b, int64_t first, int64_t count) {
    const Vector* from = features + b * N * tiles.vectors;
    const int64_t* index_of = indices + b * tiles.rows + first;
    Vector* to = out + (b * tiles.rows + first) * tiles.vectors;
    for (int64_t begin = threadIdx.x; begin < count; begin += kTile) {
      int64_t index[kAhead], column[kAhead];
      Vector vector[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int64_t i = begin + a * kThreads < count ? begin + a * kThreads : begin;
        const int row = row_of(i, tiles);
        index[a] = index_of[row];
        column[a] = i - row * tiles.vectors;
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const bool in_range = index[a] >= 0 && index[a] < N;
        vector[a] = in_range ? __ldg(from + index[a] * tiles.vectors + column[a]) : all_ones<Vector>();
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        if (begin + a * kThreads < count) __stcs(to + begin + a * kThreads, vector[a]);
      }
    }
  });
}

// The numbers of a gradient: their bits, and what they add up to.
struct Float16 {
  using Bits = unsigned short;
  using Sum = float;
  static __device__ __forceinline__ float value(Bits bits) {
    const unsigned magnitude = (bits & 0x7FFFu) << 13;  // the exponent is now 112 too small, exactly so for subnormals
    const bool finite = (bits & 0x7C00u) != 0x7C00u;
    const float positive = finite ? __uint_as_float(magnitude) * 0x1p112f : __uint_as_float(magnitude | 0x7F800000u);
    return bits & 0x8000u ? -positive : positive;
  }
};
struct Bfloat16 {
  using Bits = unsigned short;
  using Sum = float;
  static __device__ __forceinline__ float value(Bits bits) {
    return __uint_as_float(static_cast<unsigned>(bits) << 16);
  }
};
template <typename T>
struct Full {
  using Bits = T;
  using Sum = T;
  static __device__ __forceinline__ T value(T bits) { return bits; }
};

template <typename T, int count>
struct alignas(count * sizeof(T)) Pack {
  T values[count];
};

// Consecutive threads have consecutive vectors of `grad_features`, and add up what their target's sources say, in
// order.
template <typename Type, int kVector>
__global__ void __launch_bounds__(kThreads, 2)
    group_backward_kernel(const Pack<typename Type::Bits, kVector>* __restrict__ grad,    // [B, R, tiles.vectors]
                          InverseIndex inverse,                                           // of indices
                          Pack<typename Type::Sum, kVector>* __restrict__ grad_features,  // [B, N, tiles.vectors]
                          int64_t R, Tiles tiles) {
  for_each_tile(tiles, [&](int64_t b, int64_t first, int64_t count) {
    const int32_t* offsets = inverse.offsets + b * (tiles.rows + 1) + first;
    const int32_t* order = inverse.order + b * R;
    const auto* from = grad + b * R * tiles.vectors;
    auto* to = grad_features + (b * tiles.rows + first) * tiles.vectors;
    for (int64_t i = threadIdx.x; i < count; i += kThreads) {
      const int row = row_of(i, tiles);
      const auto* column = from + (i - row * tiles.vectors);
      Pack<typename Type::Sum, kVector> sum = {};
      const int end = offsets[row + 1];
      for (int source = offsets[row]; source < end; source += kAhead) {
        Pack<typename Type::Bits, kVector> vector[kAhead];
#pragma unroll
        for (int a = 0; a < kAhead; ++a) {
          vector[a] =
              column[order[min(source + a, end - 1)] * tiles.vectors];  // the last again where there are no more
        }
#pragma unroll
        for (int a = 0; a < kAhead; ++a) {
          if (source + a >= end) continue;
#pragma unroll
          for (int c = 0; c < kVector; ++c) sum.values[c] += Type::value(vector[a].values[c]);
        }
      }
      to[i] = sum;
    }
  });
}

bool aligned(const void* address, std::size_t bytes) { return reinterpret_cast<std::uintptr_t>(address) % bytes == 0; }

template <typename Vector>
void launch_group(const void* features, const int64_t* indices, void* out, int64_t B, int64_t N, int64_t R,
                  int64_t row_bytes, const Stream& stream) {
  const Tiles tiles(B, R, row_bytes / static_cast<int64_t>(sizeof(Vector)));
  launch("group", group_kernel<Vector>, tiles.shape(), stream, static_cast<const Vector*>(features), indices,
         static_cast<Vector*>(out), N, tiles);
}

template <typename Type, int kVector>
void launch_backward(const void* grad, const InverseIndex& inverse, void* grad_features, int64_t B, int64_t N,
                     int64_t R, int64_t C, const Stream& stream) {
  const Tiles tiles(B, N, C / kVector);
  launch("group_backward", group_backward_kernel<Type, kVector>, tiles.shape(), stream,
         static_cast<const Pack<typename Type::Bits, kVector>*>(grad), inverse,
         static_cast<Pack<typename Type::Sum, kVector>*>(grad_features), R, tiles);
}

template <typename Type>
void choose_backward(const void* grad, const InverseIndex& inverse, void* grad_features, int64_t B, int64_t N,
                     int64_t R, int64_t C, const Stream& stream) {
  const bool by_four = C % 4 == 0 && aligned(grad, 4 * sizeof(typename Type::Bits)) &&
                       aligned(grad_features, 4 * sizeof(typename Type::Sum));
  (by_four ? launch_backward<Type, 4> : launch_backward<Type, 1>)(grad, inverse, grad_features, B, N, R, C, stream);
}

}  // namespace

void group_cuda(const void* features, const int64_t* indices, void* out, int64_t B, int64_t N, int64_t R,
                int64_t row_bytes, const Stream& stream) {
  if (B == 0 || R == 0 || row_bytes == 0) return;
  const auto fits = [&](std::size_t bytes) {
    return row_bytes % static_cast<int64_t>(bytes) == 0 && aligned(features, bytes) && aligned(out, bytes);
  };
  auto* by_vector = fits(16)  ? launch_group<uint4>
                    : fits(8) ? launch_group<uint2>
                    : fits(4) ? launch_group<unsigned>
                    : fits(2) ? launch_group<unsigned short>
                              : launch_group<unsigned char>;
  by_vector(features, indices, out, B, N, R, row_bytes, stream);
}

void group_backward_cuda(const void* grad, const int64_t* indices, int32_t* workspace, void* grad_features, int64_t B,
                         int64_t N, int64_t R, int64_t C, GradType type, const Stream& stream) {
  if (B == 0 || N == 0 || C == 0) return;
  const InverseIndex inverse = inverse_index_cuda(indices, nullptr, workspace, B, R, N, stream);
  auto* by_type = type == GradType::float16    ? choose_backward<Float16>
                  : type == GradType::bfloat16 ? choose_backward<Bfloat16>
                  : type == GradType::float32  ? choose_backward<Full<float>>
                                               : choose_backward<Full<double>>;
  by_type(grad, inverse, grad_features, B, N, R, C, stream);
}

}  // namespace jointmae
