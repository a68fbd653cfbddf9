// Two kernels a call, for any mode, size and number of views. The first, a thread per point and view, projects the
// points, and notes in bit masks over the points which columns and which rows of tiles each footprint meets. In the
// second a warp owns a tile of pixels. The and of two masks gives it the tile's points; it takes them in their order,
// 32 at a time, and transposes the 32 spans of columns and rows, so that the and of two words again is the points that
// cover a pixel. Each lane walks through those for each of its pixels. So a pixel's sums are made in registers, in the
// order of the points, with the bits of the CPU's, and are written once; there are no atomics.
#include <cmath>
#include <stdexcept>

#include "common/cuda.h"
#include "common/exponential.h"
#include "project_points/depth_weight.h"
#include "project_points/projected.h"

namespace jointmae {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarpSize;
constexpr int kPointsPerStep = kWarpSize * kWarpSize;  // a word of 32 points for each lane

// The tile of a warp: kWidth + kHeight <= 32 bits hold the span of a footprint in it.
template <int width, int height, int ahead>
struct Tile {
  static constexpr int kWidth = width, kHeight = height;
  static constexpr int kAhead = ahead;                  // steps whose masks are loaded early
  static constexpr int kRowsApart = kWarpSize / width;  // lane l has column l % kWidth and, from row l / kWidth on,
  static constexpr int kPixels = height / kRowsApart;   // every kRowsApart-th row
  static constexpr int kStride = kWarpSize + 1;         // of tables of columns: lanes that read one point spread out
};
using LargeTile = Tile<16, 16, 2>;    // least work
using SmallTile = Tile<8, 4, 4>;      // most warps
constexpr int kLargeTilesPerSm = 16;  // fewer leave so many schedulers idle that small tiles are done sooner

enum Path { automatic = 0, large_tiles = 1, small_tiles = 2 };

struct Tiling {
  int64_t N;
  int V, W, H, radius;
  int num_words;      // of a mask, 32 points each
  int columns, rows;  // of tiles
  // The masks of a view: its columns' and its rows', then that of all points that are kept.
  __host__ __device__ int num_masks() const { return columns + rows + 1; }
};

__device__ __forceinline__ int lane_of_thread() { return static_cast<int>(threadIdx.x) % kWarpSize; }
__device__ __forceinline__ int warp_of_thread() { return static_cast<int>(threadIdx.x) / kWarpSize; }

// What a warp does: one of the items of a view, which has blocks of its own; the last of them may have warps too many.
struct Place {
  int view, item;
  __device__ __forceinline__ explicit Place(int items) {
    const unsigned blocks = ceil_div(static_cast<unsigned>(items), static_cast<unsigned>(kWarps));
    view = static_cast<int>(blockIdx.x / blocks);
    item = static_cast<int>(blockIdx.x % blocks) * kWarps + warp_of_thread();
  }
};

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
    const uint32_t kept = lane & size ? ~low : low;
    const int turn = lane & size ? kWarpSize - size : size;
    const uint32_t other = __shfl_xor_sync(kAllLanes, bits, size);
    bits = (bits & kept) | ((other << turn | other >> (kWarpSize - turn)) & ~kept);
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
__global__ void __launch_bounds__(kThreads)
    project_kernel(const float* __restrict__ points,        // [B, N, 3]
                   const float* __restrict__ world_to_cam,  // [B, V, 3, 4]
                   const float* __restrict__ intrinsics,    // [B, V, 3, 3]
                   int2* __restrict__ pixels,               // [B, V, N]
                   float4* __restrict__ seen,               // [B, V, N], u, v, z, 1 / z of the points that are kept
                   DepthWeight<float>* __restrict__ depth_weights,  // [B, V, N], theirs, in soft mode only, else null
                   uint32_t* __restrict__ masks,                    // [B, V, masks, words]
                   Tiling tiling, SoftWeights soft) {
  const Place place(tiling.num_words);
  const int view = place.view, word = place.item;
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
      if (depth_weights != nullptr) depth_weights[at] = depth_weight<kIsa>(p.z, soft.exponent_per_depth);
      left = max(p.x - tiling.radius, 0) / Tile::kWidth;
      right = min(p.x + tiling.radius, tiling.W - 1) / Tile::kWidth;
      top = max(p.y - tiling.radius, 0) / Tile::kHeight;
      bottom = min(p.y + tiling.radius, tiling.H - 1) / Tile::kHeight;
    }
  }
  masks += int64_t{view} * tiling.num_masks() * tiling.num_words;
  write_masks(masks, tiling.columns, tiling.num_words, word, left, right);
  masks += int64_t{tiling.columns} * tiling.num_words;
  write_masks(masks, tiling.rows, tiling.num_words, word, top, bottom);
  const uint32_t all_kept = __ballot_sync(kAllLanes, kept);
  if (lane_of_thread() == 0) masks[int64_t{tiling.rows} * tiling.num_words + word] = all_kept;
}

// A warp's shared memory. The tables of weights, [kWidth + kHeight][kStride], follow it in soft mode.
struct WarpMemory {
  uint16_t found[kPointsPerStep];  // points of a step that meet the tile
  uint32_t over[kWarpSize];        // the 32 points at hand, over each column and row of the tile
  float z[kWarpSize];              // theirs
  float of_z[kWarpSize];           // harmonic: 1 / z; soft: the exponent of its weight
  int32_t index[kWarpSize];
};

template <typename Tile, ProjectMode mode>
constexpr int kWarpBytes = static_cast<int>(sizeof(WarpMemory)) +
                           (mode == ProjectMode::soft ? (Tile::kWidth + Tile::kHeight) * Tile::kStride * 4 : 0);

// Calls visit(n) with the points that are in both masks, 32 at a time, one for each lane, the first for the last lane:
// the highest bit is found in one instruction, the lowest in two slow ones. The last time n = -1 is for lanes without.
template <int kAhead, typename Visit>
__device__ __forceinline__ void for_each_group(const uint32_t* __restrict__ column_mask,
                                               const uint32_t* __restrict__ row_mask, int num_words, uint16_t* found,
                                               Visit&& visit) {
  const int lane = lane_of_thread();
  uint32_t in_columns[kAhead], in_rows[kAhead];  // of this step and the next ones
  const auto load = [&](int ahead, int first) {
    const int word = first + ahead * kWarpSize + lane;
    in_columns[ahead] = word < num_words ? column_mask[word] : 0u;
    in_rows[ahead] = word < num_words ? row_mask[word] : 0u;
  };
#pragma unroll
  for (int ahead = 0; ahead < kAhead - 1; ++ahead) load(ahead, 0);
  int waiting = -1, num_waiting = 0;  // points of earlier steps that are not 32 yet: in the last lanes
  for (int first = 0; first < num_words; first += kWarpSize) {
    load(kAhead - 1, first);
    uint32_t hits = in_columns[0] & in_rows[0];
#pragma unroll
    for (int ahead = 1; ahead < kAhead; ++ahead) {
      in_columns[ahead - 1] = in_columns[ahead];
      in_rows[ahead - 1] = in_rows[ahead];
    }
    const bool last = num_words - first <= kWarpSize;
    if (!any_in_warp(hits != 0) && !last) continue;
    int end = __popc(hits);  // the number in this lane's word and before
#pragma unroll
    for (int step = 1; step < kWarpSize; step *= 2) {
      const int before = __shfl_up_sync(kAllLanes, end, step);
      if (lane >= step) end += before;
    }
    const int total = __shfl_sync(kAllLanes, end, kWarpSize - 1);
    while (hits != 0) {
      const int highest = 31 - __clz(static_cast<int>(hits));
      hits ^= 1u << highest;
      found[--end] = static_cast<uint16_t>(lane * kWarpSize + highest);
    }
    __syncwarp();
    int from = -num_waiting;
    const auto point = [&] {
      const int i = from + (kWarpSize - 1 - lane);
      return i < 0 ? waiting : i < total ? first * kWarpSize + found[i] : -1;
    };
    for (; total - from >= (last ? 1 : kWarpSize); from += kWarpSize) visit(point());
    waiting = point();
    num_waiting = total - from;
  }
}

// Calls visit(k, lane) for each pixel k of this lane with the lane of each point that covers it, in the order of the
// points. over[c] has the points over column c of the tile, over[kWidth + r] those over row r.
template <typename Tile, typename Visit>
__device__ __forceinline__ void for_each_cover(const uint32_t* over, Visit&& visit) {
  const int lane = lane_of_thread();
  const uint32_t over_column = over[lane % Tile::kWidth];
#pragma unroll
  for (int k = 0; k < Tile::kPixels; ++k) {
    uint32_t left = over_column & over[Tile::kWidth + lane / Tile::kWidth + k * Tile::kRowsApart];
    while (left != 0) {
      const int highest = 31 - __clz(static_cast<int>(left));
      left ^= 1u << highest;
      visit(k, highest);
    }
  }
}

// What a warp draws: a tile of a view whose first pixel is (left, top).
struct Scene {
  const float4* __restrict__ seen;                       // [N]
  const DepthWeight<float>* __restrict__ depth_weights;  // [N]
  const uint32_t* __restrict__ column_mask;              // [words]
  const uint32_t* __restrict__ row_mask;                 // [words]
  int left, top;
};

// The columns and rows of the tile that a point covers, first and last.
template <typename Tile>
struct Footprint {
  int2 columns, rows;

  __device__ __forceinline__ Footprint(const float4& point, const Scene& scene, int radius) {
    const int column = static_cast<int>(floorf(point.x)) - scene.left;
    const int row = static_cast<int>(floorf(point.y)) - scene.top;
    columns = make_int2(max(column - radius, 0), min(column + radius, Tile::kWidth - 1));
    rows = make_int2(max(row - radius, 0), min(row + radius, Tile::kHeight - 1));
  }
  __device__ __forceinline__ uint32_t spans() const {
    return span(columns.x, columns.y) | span(rows.x, rows.y) << Tile::kWidth;
  }
};

// A lane's pixels: k is at column lane % kWidth and row lane / kWidth + k * kRowsApart of the tile.
template <typename Tile>
struct Pixels {
  float nearest[Tile::kPixels];   // z
  int32_t winner[Tile::kPixels];  // the point of that z
  float weights[Tile::kPixels], sums[Tile::kPixels];
};

// Finds the nearest points; harmonic: also adds up the weights.
template <typename Tile, ProjectMode mode>
__device__ __forceinline__ void find_nearest(const Scene& scene, const Tiling& tiling, WarpMemory& group,
                                             Pixels<Tile>& pixels) {
  const int lane = lane_of_thread();
  float farthest = INFINITY;  // what is not nearer is not seen in the tile
  for_each_group<Tile::kAhead>(scene.column_mask, scene.row_mask, tiling.num_words, group.found, [&](int n) {
    const float4 point = n < 0 ? make_float4(0.0f, 0.0f, INFINITY, 0.0f) : scene.seen[n];
    const bool hidden = mode == ProjectMode::harmonic ? n < 0 : point.z >= farthest;
    const uint32_t spans = hidden ? 0u : Footprint<Tile>(point, scene, tiling.radius).spans();
    if (!any_in_warp(spans != 0)) return;
    group.over[lane] = transpose(spans);
    group.z[lane] = point.z;
    group.index[lane] = n;
    if constexpr (mode == ProjectMode::harmonic) group.of_z[lane] = point.w;
    __syncwarp();
    for_each_cover<Tile>(group.over, [&](int k, int i) {
      const float z = group.z[i];
      if (z < pixels.nearest[k]) {  // a tie stays with the earlier point
        pixels.nearest[k] = z;
        pixels.winner[k] = group.index[i];
      }
      if constexpr (mode == ProjectMode::harmonic) {
        pixels.weights[k] += group.of_z[i];
        pixels.sums[k] += 1.0f;
      }
    });
    float limit = 0.0f;
#pragma unroll
    for (int k = 0; k < Tile::kPixels; ++k) limit = fmaxf(limit, pixels.nearest[k]);
    farthest = __uint_as_float(__reduce_max_sync(kAllLanes, __float_as_uint(limit)));  // no z is negative
  });
}

// soft: adds up the weights, which have still to be divided by the mantissas of the pixels' nearest points; `exponents`
// are theirs. What a point gives to them is made once per point and column or row, in `tables`.
template <typename Tile>
__device__ __forceinline__ void add_weights(const Scene& scene, const Tiling& tiling, const SoftWeights& soft,
                                            const float (&exponents)[Tile::kPixels], WarpMemory& group, float* tables,
                                            Pixels<Tile>& pixels) {
  const int lane = lane_of_thread();
  float* const column_weights = tables;                              // [kWidth, kStride]
  float* const row_weights = tables + Tile::kWidth * Tile::kStride;  // [kHeight, kStride]
  const auto gaussian = [&](int pixel, float at) {
    const float offset = (static_cast<float>(pixel) + 0.5f) - at;
    return exp_negative<kIsa>((offset * offset) * soft.gaussian_scale);
  };
  for_each_group<Tile::kAhead>(scene.column_mask, scene.row_mask, tiling.num_words, group.found, [&](int n) {
    const float4 point = n < 0 ? make_float4(0.0f, 0.0f, 0.0f, 0.0f) : scene.seen[n];
    const Footprint<Tile> footprint(point, scene, tiling.radius);
    if (!any_in_warp(n >= 0)) return;
    const DepthWeight<float> weight = n < 0 ? DepthWeight<float>{} : scene.depth_weights[n];
    group.z[lane] = point.z;
    group.of_z[lane] = weight.exponent;
    group.over[lane] = transpose(n < 0 ? 0u : footprint.spans());
    for (int i = footprint.columns.x; i <= footprint.columns.y; ++i) {
      column_weights[i * Tile::kStride + lane] = gaussian(scene.left + i, point.x) * weight.mantissa;
    }
    for (int i = footprint.rows.x; i <= footprint.rows.y; ++i) {
      row_weights[i * Tile::kStride + lane] = gaussian(scene.top + i, point.y);
    }
    __syncwarp();
    for_each_cover<Tile>(group.over, [&](int k, int i) {
      const float z = group.z[i];
      const int column = lane % Tile::kWidth, row = lane / Tile::kWidth + k * Tile::kRowsApart;
      const float w = (column_weights[column * Tile::kStride + i] * row_weights[row * Tile::kStride + i]) *
                      power_of_two<kIsa>(group.of_z[i] - exponents[k]);
      pixels.weights[k] += w;
      pixels.sums[k] += w * z;
    });
  });
}

// By a warp.
__device__ __forceinline__ void count_dropped(const uint32_t* __restrict__ kept_mask, const Tiling& tiling,
                                              int64_t* __restrict__ dropped) {
  int kept = 0;
  for (int word = lane_of_thread(); word < tiling.num_words; word += kWarpSize) kept += __popc(kept_mask[word]);
  kept = __reduce_add_sync(kAllLanes, kept);
  if (lane_of_thread() == 0) *dropped = tiling.N - kept;
}

// A warp per tile of a view; its first one also counts the points that were dropped.
template <typename Tile, ProjectMode mode>
__global__ void __launch_bounds__(kThreads, 5)
    draw_kernel(const float4* __restrict__ seen,                       // [B, V, N], u, v, z, 1 / z
                const DepthWeight<float>* __restrict__ depth_weights,  // [B, V, N], in soft mode only
                const uint32_t* __restrict__ masks,                    // [B, V, masks, words]
                float* __restrict__ depth,                             // [B, V, H, W]
                int32_t* __restrict__ index,                           // [B, V, H, W]
                float* __restrict__ coverage,                          // [B, V, H, W], in soft mode only
                float* __restrict__ weight_sum,                        // [B, V, H, W], not in zbuffer mode
                int64_t* __restrict__ dropped,                         // [B, V]
                Tiling tiling, SoftWeights soft) {
  const Place place(tiling.columns * tiling.rows);
  const int view = place.view, tile = place.item, lane = lane_of_thread();
  if (tile >= tiling.columns * tiling.rows) return;
  const int tile_row = static_cast<int>(static_cast<unsigned>(tile) / static_cast<unsigned>(tiling.columns));
  const int tile_column = tile - tile_row * tiling.columns;
  masks += int64_t{view} * tiling.num_masks() * tiling.num_words;
  const Scene scene{seen + view * tiling.N,
                    depth_weights + view * tiling.N,
                    masks + int64_t{tile_column} * tiling.num_words,
                    masks + int64_t{tiling.columns + tile_row} * tiling.num_words,
                    tile_column * Tile::kWidth,
                    tile_row * Tile::kHeight};
  const int x = scene.left + lane % Tile::kWidth, y = scene.top + lane / Tile::kWidth;
  const auto in_frame = [&](int k) { return x < tiling.W && y + k * Tile::kRowsApart < tiling.H; };
  const int64_t first = (int64_t{view} * tiling.H + y) * tiling.W + x, step = int64_t{Tile::kRowsApart} * tiling.W;
  const auto at = [&](int k) { return first + k * step; };  // of pixel k

  Pixels<Tile> pixels;
#pragma unroll
  for (int k = 0; k < Tile::kPixels; ++k) {
    pixels.nearest[k] = in_frame(k) ? INFINITY : 0.0f;  // nothing is nearer than 0
    pixels.winner[k] = -1;
    pixels.weights[k] = pixels.sums[k] = 0.0f;
  }
  unsigned char* const memory = shared_memory<unsigned char>() + warp_of_thread() * kWarpBytes<Tile, mode>;
  WarpMemory& group = *reinterpret_cast<WarpMemory*>(memory);
  find_nearest<Tile, mode>(scene, tiling, group, pixels);
#pragma unroll
  for (int k = 0; k < Tile::kPixels; ++k) {
    if (!in_frame(k)) break;
    index[at(k)] = pixels.winner[k];
    if constexpr (mode == ProjectMode::zbuffer) depth[at(k)] = pixels.winner[k] >= 0 ? pixels.nearest[k] : 0.0f;
  }
  if constexpr (mode == ProjectMode::soft) {
    float exponents[Tile::kPixels];
#pragma unroll
    for (int k = 0; k < Tile::kPixels; ++k) {
      exponents[k] = pixels.winner[k] >= 0 ? scene.depth_weights[pixels.winner[k]].exponent : 0.0f;
    }
    add_weights(scene, tiling, soft, exponents, group, reinterpret_cast<float*>(memory + sizeof(WarpMemory)), pixels);
  }
  if constexpr (mode != ProjectMode::zbuffer) {
#pragma unroll
    for (int k = 0; k < Tile::kPixels; ++k) {
      if (!in_frame(k)) break;
      const float w = pixels.weights[k];
      depth[at(k)] = w > 0.0f ? pixels.sums[k] / w : 0.0f;
      if constexpr (mode == ProjectMode::soft) {
        const int32_t winner = index[at(k)];  // registers are few: it was not kept
        const float total = winner >= 0 ? w * (1.0f / scene.depth_weights[winner].mantissa) : 0.0f;
        weight_sum[at(k)] = total;
        coverage[at(k)] = total / (total + soft.background);
      } else {
        weight_sum[at(k)] = w;
      }
    }
  }
  if (tile == 0) count_dropped(masks + int64_t{tiling.num_masks() - 1} * tiling.num_words, tiling, dropped + view);
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
    const std::size_t per_point = sizeof(float4) + (spec.mode == ProjectMode::soft ? sizeof(DepthWeight<float>) : 0);
    return spec.B * spec.V *
           (spec.N * static_cast<int64_t>(per_point) +
            int64_t{tiling.num_masks()} * tiling.num_words * static_cast<int64_t>(sizeof(uint32_t)));
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
    auto* const weights = reinterpret_cast<DepthWeight<float>*>(seen + num_views * spec.N);
    const bool is_soft = spec.mode == ProjectMode::soft;
    uint32_t* const masks = reinterpret_cast<uint32_t*>(weights + (is_soft ? num_views * spec.N : 0));
    const SoftWeights soft(spec);
    launch("project_points", project_kernel<Tile>, {num_views * ceil_div(tiling.num_words, kWarps), kThreads}, stream,
           points, world_to_cam, intrinsics, reinterpret_cast<int2*>(pixels), seen, is_soft ? weights : nullptr, masks,
           tiling, soft);
    const auto draw = [&](auto kernel, int warp_bytes) {
      launch("project_points", kernel,
             {num_views * ceil_div(num_tiles, int64_t{kWarps}), kThreads, kWarps * warp_bytes}, stream, seen, weights,
             masks, depth, index, coverage, weight_sum, dropped, tiling, soft);
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
