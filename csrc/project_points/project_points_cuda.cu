// Two kernels a call, for any mode, size and number of views. The first, a thread per point and view, projects the
// points, and notes in bit masks over the points which columns and which rows of tiles each footprint meets. In the
// second a warp owns a tile of pixels. The and of two masks gives it the tile's points; it takes them in their order,
// 32 at a time, and transposes the 32 spans of columns and rows, so that the and of two words again is the points that
// cover a pixel. Each lane walks through those for each of its pixels. So a pixel's sums are made in registers, in the
// order of the points, with the bits of the CPU's, and are written once; there are no atomics.
#include <cmath>
#include <stdexcept>

#include "common/cuda.h"
#include "common/exp_negative.h"
#include "project_points/projected.h"

namespace jointmae {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarpSize;
constexpr int kPointsPerStep = kWarpSize * kWarpSize;  // a word of 32 points for each lane

// The tile of a warp: kWidth + kHeight <= 32 bits hold the span of a footprint in it.
template <int width, int height>
struct Tile {
  static constexpr int kWidth = width, kHeight = height;
  static constexpr int kRowsApart = kWarpSize / width;  // lane l has column l % kWidth and, from row l / kWidth on,
  static constexpr int kPixels = height / kRowsApart;   // every kRowsApart-th row
  static constexpr int kStride = kWarpSize + 1;         // of tables of columns: lanes that read one point spread out
};
using LargeTile = Tile<16, 16>;       // least work
using SmallTile = Tile<8, 4>;         // most warps
constexpr int kLargeTilesPerSm = 16;  // fewer leave so many schedulers idle that small tiles are done sooner

enum Path { automatic = 0, large_tiles = 1, small_tiles = 2 };

struct Tiling {
  int64_t N;
  int V, W, H, radius;
  int num_words;      // of a mask, 32 points each
  int columns, rows;  // of tiles
  // The masks of a view: its columns' and its rows', then that of all points that are kept.
  __host__ __device__ int64_t num_masks() const { return int64_t{columns} + rows + 1; }
};

__device__ __forceinline__ int lane_of_thread() { return static_cast<int>(threadIdx.x) % kWarpSize; }
__device__ __forceinline__ int warp_of_thread() { return static_cast<int>(threadIdx.x) / kWarpSize; }

// Bits first..last of 0..31, as far as they are there.
__device__ __forceinline__ uint32_t span(int first, int last) {
  first = max(first, 0);
  last = min(last, 31);
  return first <= last ? (kAllLanes << first) & (kAllLanes >> (31 - last)) : 0u;
}

// Bit j of lane i becomes bit i of lane j: blocks of 16x16, 8x8... bits change places across the diagonal.
__device__ __forceinline__ uint32_t transpose(uint32_t bits) {
  const int lane = lane_of_thread();
#pragma unroll
  for (int size = 16; size > 0; size /= 2) {
    const uint32_t low = kAllLanes / ((1u << size) + 1);  // `size` ones, `size` zeros...
    const uint32_t other = __shfl_xor_sync(kAllLanes, bits, size);
    bits = lane & size ? (bits & ~low) | (other >> size & low) : (bits & low) | (other & low) << size;
  }
  return bits;
}

// For tiles 0..count-1: the word of the 32 points whose lanes' footprints meet the tiles first..last.
__device__ __forceinline__ void write_masks(uint32_t* __restrict__ masks, int count, int num_words, int word, int first,
                                            int last) {
  for (int tile = 0; tile < count; tile += kWarpSize) {
    const uint32_t meets = transpose(span(first - tile, last - tile));
    const int64_t mine = tile + lane_of_thread();
    if (mine < count) masks[mine * num_words + word] = meets;
  }
}

// A thread per point and view; a warp has 32 points of a view, and so a word of each mask.
template <typename Tile>
__global__ void __launch_bounds__(kThreads, 5) project_kernel(const float* __restrict__ points,        // [B, N, 3]
                                                              const float* __restrict__ world_to_cam,  // [B, V, 3, 4]
                                                              const float* __restrict__ intrinsics,    // [B, V, 3, 3]
                                                              int2* __restrict__ pixels,               // [B, V, N]
                                                              float4* __restrict__ seen,  // [B, V, N], u, v, z, 1 / z
                                                              uint32_t* __restrict__ masks,  // [B, V, masks, words]
                                                              Tiling tiling) {
  const int blocks_per_view = ceil_div(tiling.num_words, kWarps);
  const int view = static_cast<int>(blockIdx.x) / blocks_per_view;
  const int word = static_cast<int>(blockIdx.x) % blocks_per_view * kWarps + warp_of_thread();
  if (word >= tiling.num_words) return;
  const int64_t n = int64_t{word} * kWarpSize + lane_of_thread();
  bool kept = false;
  int left = 0, right = -1, top = 0, bottom = -1;  // tiles that the footprint meets
  if (n < tiling.N) {
    const Projected p = project(points + (view / tiling.V * tiling.N + n) * 3, world_to_cam + int64_t{view} * 12,
                                intrinsics + int64_t{view} * 9, tiling.W, tiling.H);
    const int64_t at = view * tiling.N + n;
    pixels[at] = make_int2(p.x, p.y);
    kept = p.kept;
    if (kept) {
      seen[at] = make_float4(p.u, p.v, p.z, 1.0f / p.z);
      left = max(p.x - tiling.radius, 0) / Tile::kWidth;
      right = min(p.x + tiling.radius, tiling.W - 1) / Tile::kWidth;
      top = max(p.y - tiling.radius, 0) / Tile::kHeight;
      bottom = min(p.y + tiling.radius, tiling.H - 1) / Tile::kHeight;
    }
  }
  masks += view * tiling.num_masks() * tiling.num_words;
  write_masks(masks, tiling.columns, tiling.num_words, word, left, right);
  masks += int64_t{tiling.columns} * tiling.num_words;
  write_masks(masks, tiling.rows, tiling.num_words, word, top, bottom);
  const uint32_t all_kept = __ballot_sync(kAllLanes, kept);
  if (lane_of_thread() == 0) masks[int64_t{tiling.rows} * tiling.num_words + word] = all_kept;
}

// A warp's shared memory. The tables of weights, [kWidth + kHeight][kStride], follow it in soft mode.
struct WarpMemory {
  uint16_t found[kPointsPerStep];  // points of a step that meet the tile
  float z[kWarpSize];              // of the 32 points at hand
  float per_z[kWarpSize];
  int32_t index[kWarpSize];
};

template <typename Tile, ProjectMode mode>
constexpr int kWarpBytes = static_cast<int>(sizeof(WarpMemory)) +
                           (mode == ProjectMode::soft ? (Tile::kWidth + Tile::kHeight) * Tile::kStride * 4 : 0);

// Calls visit(n) with the points that are in both masks, in their order, 32 at a time, one for each lane; the last time
// the lanes that get none have n = -1.
template <typename Visit>
__device__ __forceinline__ void for_each_group(const uint32_t* __restrict__ column_mask,
                                               const uint32_t* __restrict__ row_mask, int num_words,
                                               uint16_t* __restrict__ found, Visit&& visit) {
  const int lane = lane_of_thread();
  const auto load = [&](int word) { return word < num_words ? column_mask[word] & row_mask[word] : 0u; };
  int waiting = -1, num_waiting = 0;  // points of earlier steps that are not 32 yet: in the first lanes
  uint32_t next = load(lane);
  for (int first = 0; first < num_words; first += kWarpSize) {
    uint32_t hits = next;
    next = load(first + kWarpSize + lane);
    const bool last = num_words - first <= kWarpSize;
    if (!last && !__any_sync(kAllLanes, hits != 0)) continue;
    const int count = __popc(hits);
    int end = count;  // the number in this lane's word and before
#pragma unroll
    for (int step = 1; step < kWarpSize; step *= 2) {
      const int before = __shfl_up_sync(kAllLanes, end, step);
      if (lane >= step) end += before;
    }
    for (int at = end - count; hits != 0; hits &= hits - 1) {
      found[at++] = static_cast<uint16_t>(lane * kWarpSize + __ffs(static_cast<int>(hits)) - 1);
    }
    const int total = __shfl_sync(kAllLanes, end, kWarpSize - 1);
    __syncwarp();
    int from = -num_waiting;
    const auto point = [&] {
      const int i = from + lane;
      return i < 0 ? waiting : i < total ? first * kWarpSize + found[i] : -1;
    };
    for (; total - from >= (last ? 1 : kWarpSize); from += kWarpSize) visit(point());
    waiting = point();
    num_waiting = total - from;
    __syncwarp();
  }
}

// Calls visit(k, i) for each pixel k of this lane with the points i of the group that cover it, in their order. `spans`
// is what the lane's point covers of the tile: columns in the low bits, then rows.
template <typename Tile, typename Visit>
__device__ __forceinline__ void for_each_cover(uint32_t spans, Visit&& visit) {
  const int lane = lane_of_thread();
  const uint32_t covers = transpose(spans);  // lane c: the points that cover column c; lane kWidth + r: row r
  const uint32_t column = __shfl_sync(kAllLanes, covers, lane % Tile::kWidth);
#pragma unroll
  for (int k = 0; k < Tile::kPixels; ++k) {
    const int row = lane / Tile::kWidth + k * Tile::kRowsApart;
    uint32_t hits = column & __shfl_sync(kAllLanes, covers, Tile::kWidth + row);
    for (; hits != 0; hits &= hits - 1) visit(k, __ffs(static_cast<int>(hits)) - 1);
  }
}

// The columns or rows of a tile that begins at `begin` which a footprint around pixel floor(at) covers.
__device__ __forceinline__ int2 covered(float at, int begin, int radius, int size) {
  const int pixel = static_cast<int>(floorf(at)) - begin;
  return make_int2(max(pixel - radius, 0), min(pixel + radius, size - 1));
}

// The Gaussian weights of one axis of a footprint, for each column or row that it covers.
template <typename Tile>
__device__ __forceinline__ void write_weights(float* __restrict__ weights, float at, int begin, int2 range,
                                              float scale) {
  for (int i = range.x; i <= range.y; ++i) {
    const float offset = (static_cast<float>(begin + i) + 0.5f) - at;
    weights[i * Tile::kStride + lane_of_thread()] = exp_negative<kIsa>((offset * offset) * scale);
  }
}

// A warp per tile of a view; its first one also counts the points that were dropped.
template <typename Tile, ProjectMode mode>
__global__ void __launch_bounds__(kThreads, 5)
    draw_kernel(const float4* __restrict__ seen,     // [B, V, N], u, v, z, 1 / z
                const uint32_t* __restrict__ masks,  // [B, V, masks, words]
                float* __restrict__ depth,           // [B, V, H, W]
                int32_t* __restrict__ index,         // [B, V, H, W]
                float* __restrict__ coverage,        // [B, V, H, W]
                float* __restrict__ weight_sum,      // [B, V, H, W], not in zbuffer mode
                int64_t* __restrict__ dropped,       // [B, V]
                Tiling tiling, SoftWeights soft) {
  constexpr int kPixels = Tile::kPixels, kWidth = Tile::kWidth, kHeight = Tile::kHeight;
  const int lane = lane_of_thread(), num_tiles = tiling.columns * tiling.rows;
  const int blocks_per_view = ceil_div(num_tiles, kWarps);
  const int view = static_cast<int>(blockIdx.x) / blocks_per_view;
  const int tile = static_cast<int>(blockIdx.x) % blocks_per_view * kWarps + warp_of_thread();
  if (tile >= num_tiles) return;
  const int left = tile % tiling.columns * kWidth, top = tile / tiling.columns * kHeight;
  const int x = left + lane % kWidth, y = top + lane / kWidth;  // pixel k is at row y + k * kRowsApart

  unsigned char* const memory = shared_memory<unsigned char>() + warp_of_thread() * kWarpBytes<Tile, mode>;
  WarpMemory& group = *reinterpret_cast<WarpMemory*>(memory);
  seen += view * tiling.N;
  masks += view * tiling.num_masks() * tiling.num_words;
  const uint32_t* const column_mask = masks + int64_t{left / kWidth} * tiling.num_words;
  const uint32_t* const row_mask = masks + int64_t{tiling.columns + top / kHeight} * tiling.num_words;

  float nearest[kPixels], weights[kPixels], sums[kPixels];
  int32_t winner[kPixels];
#pragma unroll
  for (int k = 0; k < kPixels; ++k) {
    const bool in_frame = x < tiling.W && y + k * Tile::kRowsApart < tiling.H;
    nearest[k] = in_frame ? INFINITY : 0.0f;  // nothing is nearer than 0
    winner[k] = -1;
    weights[k] = sums[k] = 0.0f;
  }

  float farthest = INFINITY;  // nothing from here on is seen in the tile
  for_each_group(column_mask, row_mask, tiling.num_words, group.found, [&](int n) {
    uint32_t spans = 0;
    if (n >= 0) {
      const float4 point = seen[n];
      if (mode == ProjectMode::harmonic || point.z < farthest) {
        const int2 columns = covered(point.x, left, tiling.radius, kWidth);
        const int2 rows = covered(point.y, top, tiling.radius, kHeight);
        spans = span(columns.x, columns.y) | span(rows.x, rows.y) << kWidth;
        group.z[lane] = point.z;
        if constexpr (mode == ProjectMode::harmonic) group.per_z[lane] = point.w;
        group.index[lane] = n;
      }
    }
    if (!__any_sync(kAllLanes, spans != 0)) return;
    __syncwarp();
    for_each_cover<Tile>(spans, [&](int k, int i) {
      const float z = group.z[i];
      if (z < nearest[k]) {  // a tie stays with the earlier point
        nearest[k] = z;
        winner[k] = group.index[i];
      }
      if constexpr (mode == ProjectMode::harmonic) {
        weights[k] += group.per_z[i];
        sums[k] += 1.0f;
      }
    });
    float limit = nearest[0];
#pragma unroll
    for (int k = 1; k < kPixels; ++k) limit = fmaxf(limit, nearest[k]);
    farthest = __uint_as_float(__reduce_max_sync(kAllLanes, __float_as_uint(limit)));  // no z is negative
    __syncwarp();
  });

  if constexpr (mode == ProjectMode::soft) {
    float* const column_weights = reinterpret_cast<float*>(memory + sizeof(WarpMemory));  // [kWidth, kStride]
    float* const row_weights = column_weights + kWidth * Tile::kStride;                   // [kHeight, kStride]
    for_each_group(column_mask, row_mask, tiling.num_words, group.found, [&](int n) {
      uint32_t spans = 0;
      if (n >= 0) {
        const float4 point = seen[n];
        const int2 columns = covered(point.x, left, tiling.radius, kWidth);
        const int2 rows = covered(point.y, top, tiling.radius, kHeight);
        spans = span(columns.x, columns.y) | span(rows.x, rows.y) << kWidth;
        write_weights<Tile>(column_weights, point.x, left, columns, soft.gaussian_scale);
        write_weights<Tile>(row_weights, point.y, top, rows, soft.gaussian_scale);
        group.z[lane] = point.z;
      }
      __syncwarp();
      for_each_cover<Tile>(spans, [&](int k, int i) {
        const float z = group.z[i];
        const int column = lane % kWidth, row = lane / kWidth + k * Tile::kRowsApart;
        const float w = (column_weights[column * Tile::kStride + i] * row_weights[row * Tile::kStride + i]) *
                        exp_negative<kIsa>((nearest[k] - z) * soft.per_temperature);
        weights[k] += w;
        sums[k] += w * z;
      });
      __syncwarp();
    });
  }

#pragma unroll
  for (int k = 0; k < kPixels; ++k) {
    const int row = y + k * Tile::kRowsApart;
    if (x >= tiling.W || row >= tiling.H) break;
    const int64_t at = (int64_t{view} * tiling.H + row) * tiling.W + x;
    const float w = weights[k];
    const bool covered = winner[k] >= 0;
    index[at] = winner[k];
    if constexpr (mode == ProjectMode::zbuffer) {
      depth[at] = covered ? nearest[k] : 0.0f;
    } else {
      depth[at] = w > 0.0f ? sums[k] / w : 0.0f;
      weight_sum[at] = w;
    }
    coverage[at] = mode == ProjectMode::soft ? w / (w + soft.background) : covered ? 1.0f : 0.0f;
  }
  if (tile != 0) return;
  const uint32_t* const kept_mask = masks + (tiling.num_masks() - 1) * tiling.num_words;
  int kept = 0;
  for (int word = lane; word < tiling.num_words; word += kWarpSize) kept += __popc(kept_mask[word]);
  kept = __reduce_add_sync(kAllLanes, kept);
  if (lane == 0) dropped[view] = tiling.N - kept;
}

template <typename Tile>
Tiling tiling_of(const ProjectSpec& spec) {
  if (spec.W >= 1 << 30 || spec.H >= 1 << 30) {
    throw std::invalid_argument("project_points: image_size must be below 2^30 on a GPU");
  }
  return {spec.N,
          static_cast<int>(spec.V),
          static_cast<int>(spec.W),
          static_cast<int>(spec.H),
          static_cast<int>(spec.radius),
          static_cast<int>(ceil_div<int64_t>(spec.N, kWarpSize)),
          static_cast<int>(ceil_div<int64_t>(spec.W, Tile::kWidth)),
          static_cast<int>(ceil_div<int64_t>(spec.H, Tile::kHeight))};
}

// Calls `call(Tile{})`.
template <typename Call>
auto with_tile(const ProjectSpec& spec, int path, const Stream& stream, Call&& call) {
  if (path == automatic) {
    const Tiling tiling = tiling_of<LargeTile>(spec);
    const int64_t num_tiles = spec.B * spec.V * tiling.columns * tiling.rows;
    path = num_tiles < int64_t{kLargeTilesPerSm} * device_limits(stream).num_sms ? small_tiles : large_tiles;
  }
  return path == large_tiles ? call(LargeTile{}) : call(SmallTile{});
}

}  // namespace

int64_t project_points_workspace_cuda(const ProjectSpec& spec, int path, const Stream& stream) {
  return with_tile(spec, path, stream, [&](auto tile) {
    const Tiling tiling = tiling_of<decltype(tile)>(spec);
    return spec.B * spec.V *
           (spec.N * static_cast<int64_t>(sizeof(float4)) +
            tiling.num_masks() * tiling.num_words * static_cast<int64_t>(sizeof(uint32_t)));
  });
}

void project_points_cuda(const float* points, const float* world_to_cam, const float* intrinsics, float* depth,
                         int32_t* index, float* coverage, int32_t* pixels, int64_t* dropped, float* weight_sum,
                         void* workspace, const ProjectSpec& spec, int path, const Stream& stream) {
  with_tile(spec, path, stream, [&](auto tile) {
    using Tile = decltype(tile);
    const Tiling tiling = tiling_of<Tile>(spec);
    const int64_t num_views = spec.B * spec.V, num_tiles = int64_t{tiling.columns} * tiling.rows;
    float4* const seen = static_cast<float4*>(workspace);
    uint32_t* const masks = reinterpret_cast<uint32_t*>(seen + num_views * spec.N);
    launch("project_points", project_kernel<Tile>, {num_views * ceil_div(tiling.num_words, kWarps), kThreads}, stream,
           points, world_to_cam, intrinsics, reinterpret_cast<int2*>(pixels), seen, masks, tiling);
    const auto draw = [&](auto kernel, int warp_bytes) {
      launch("project_points", kernel,
             {num_views * ceil_div(num_tiles, int64_t{kWarps}), kThreads, kWarps * warp_bytes}, stream, seen, masks,
             depth, index, coverage, weight_sum, dropped, tiling, SoftWeights(spec));
    };
    if (spec.mode == ProjectMode::zbuffer) {
      draw(draw_kernel<Tile, ProjectMode::zbuffer>, kWarpBytes<Tile, ProjectMode::zbuffer>);
    } else if (spec.mode == ProjectMode::soft) {
      draw(draw_kernel<Tile, ProjectMode::soft>, kWarpBytes<Tile, ProjectMode::soft>);
    } else {
      draw(draw_kernel<Tile, ProjectMode::harmonic>, kWarpBytes<Tile, ProjectMode::harmonic>);
    }
  });
}

}  // namespace jointmae
