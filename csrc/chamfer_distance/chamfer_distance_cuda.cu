// Large clouds: each distance is computed once, for both directions. A warp has 256 rows (points of the larger cloud,
// 8 a lane, in registers) and a range of columns, which pass one by one. Per distance there is one minimum for the row
// and one for the column; where a minimum lies is known to a window of 8 columns or rows, the first that has it. What a
// warp finds goes as a key (distance, window) into a 64-bit minimum, which needs no order; a second kernel looks each
// window through for the index.
//
// Tiny sets: a warp has all rows and columns of a set, and needs no keys: one launch.
//
// Backward: a thread per point adds up what its own distance says and those of the points whose nearest it is, in
// order.
#include <limits>
#include <utility>

#include "chamfer_distance/chamfer_distance.h"
#include "common/cuda.h"
#include "common/inverse_index.h"

namespace jointmae {
namespace {

constexpr int64_t kMaxTiny = 64;      // points: two rows a lane
constexpr int kBlockWarps = 4;        // where a warp has its own work and shares nothing
constexpr int kThreads = 256;         // per block elsewhere
constexpr int kWindow = 8;            // candidates that a key leaves
constexpr int64_t kUnitsPerSm = 32;   // warps' worth of work, where there is enough of it
constexpr int64_t kMaxColumns = 512;  // per warp: by then loading the rows costs nothing beside
constexpr int kAhead = 4;             // loads in flight per thread
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// One side of the pairs of clouds, and what is asked about it.
struct Cloud {
  const float* points;     // [B, count, 3]
  const int64_t* lengths;  // [B] or null
  int64_t count;
  float* distance;           // [B, count]
  int64_t* index;            // [B, count]
  unsigned long long* keys;  // [B, count], null for tiny sets

  __device__ __forceinline__ int64_t length(int64_t b) const { return length_of(lengths, b, count); }
};

// Orders as the distance does, which is not negative, then as the index.
__device__ __forceinline__ unsigned long long key_of(unsigned distance_bits, int64_t index) {
  return static_cast<unsigned long long>(distance_bits) << 32 | static_cast<unsigned>(index);
}

__device__ __forceinline__ float3 load_point(const float* points, int64_t i) {
  return make_float3(__ldg(points + 3 * i), __ldg(points + 3 * i + 1), __ldg(points + 3 * i + 2));
}

// How the work is cut into units of one warp: a block of rows and a range of columns.
struct Units {
  int64_t row_blocks, ranges, count;
  int64_t columns;  // per range, a multiple of a warp
};

// What a warp has in shared memory of the columns that pass.
struct Columns {
  float4 point[kWarpSize];
  uint2 nearest[kWarpSize];  // the bits of the smallest distance, and the lanes that have it
};

// One warp per unit, kRows rows a lane, which follow each other: the first lane of several has the lowest row.
template <int kRows>
__global__ void __launch_bounds__(kBlockWarps* kWarpSize, 5) nearest_kernel(Cloud rows, Cloud columns, Units units) {
  static_assert(kRows <= kWindow);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize, warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int64_t unit = int64_t{blockIdx.x} * kBlockWarps + warp;
  if (unit >= units.count) return;
  const int64_t range = unit % units.ranges, block = unit / units.ranges % units.row_blocks;
  const int64_t b = unit / units.ranges / units.row_blocks;
  const int64_t num_rows = rows.length(b), num_columns = columns.length(b);
  const int64_t first_row = block * kWarpSize * kRows, begin = range * units.columns;
  if (first_row >= num_rows || begin >= num_columns) return;
  const int64_t end = begin + units.columns < num_columns ? begin + units.columns : num_columns;

  // NaN in place of points that do not count: never a minimum.
  float3 point[kRows];
  float nearest[kRows];
  int window[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = first_row + lane * kRows + r;
    point[r] = row < num_rows ? load_point(rows.points + b * rows.count * 3, row) : make_float3(kNan, kNan, kNan);
    nearest[r] = kInfinity;
    window[r] = static_cast<int>(begin);
  }
  Columns& shared = shared_memory<Columns>()[warp];
  for (int64_t stage = begin; stage < end; stage += kWarpSize) {
    float4 column = make_float4(kNan, kNan, kNan, 0);
    if (stage + lane < end) {
      const float3 p = load_point(columns.points + b * columns.count * 3, stage + lane);
      column = make_float4(p.x, p.y, p.z, 0);
    }
    shared.point[lane] = column;
    __syncwarp();
    for (int first = 0; first < kWarpSize; first += kWindow) {
      float before[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) before[r] = nearest[r];
#pragma unroll 2
      for (int c = 0; c < kWindow; ++c) {
        const float4 q = shared.point[first + c];
        float lowest = kInfinity;
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const float d = sq_distance(point[r].x, point[r].y, point[r].z, q.x, q.y, q.z);
          nearest[r] = fminf(nearest[r], d);
          lowest = r == 0 ? d : fminf(lowest, d);
        }
        const unsigned bits = __float_as_uint(lowest), lowest_bits = __reduce_min_sync(kAllLanes, bits);
        const unsigned lanes = __ballot_sync(kAllLanes, bits == lowest_bits);
        if (lane == 0) shared.nearest[first + c] = make_uint2(lowest_bits, lanes);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (nearest[r] < before[r]) window[r] = static_cast<int>(stage) + first;
      }
    }
    __syncwarp();
    const uint2 found = shared.nearest[lane];
    if (stage + lane < end) {
      const int64_t row = first_row + (__ffs(static_cast<int>(found.y)) - 1) * kRows;
      atomicMin(&columns.keys[b * columns.count + stage + lane], key_of(found.x, row));
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = first_row + lane * kRows + r;
    if (row < num_rows) {
      atomicMin(&rows.keys[b * rows.count + row], key_of(__float_as_uint(nearest[r]), window[r]));
    }
  }
}

// kWindow lanes per point of either cloud: the first candidate that is at the distance of the key.
__global__ void __launch_bounds__(kThreads) resolve_kernel(Cloud x, Cloud y, int64_t B) {
  int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWindow;
  const bool of_x = i < B * x.count;
  if (!of_x) i -= B * x.count;
  const Cloud mine = of_x ? x : y, other = of_x ? y : x;
  const bool exists = i < B * mine.count;
  const int64_t b = exists ? i / mine.count : 0;
  const bool counts = exists && i - b * mine.count < mine.length(b);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize, in_window = lane % kWindow;
  const int64_t num_others = counts ? other.length(b) : 1;
  const unsigned long long key = counts ? mine.keys[i] : 0;
  int64_t first = static_cast<unsigned>(key);
  if (first >= num_others) first = num_others - 1;  // where every distance is NaN
  const int64_t candidate = first + in_window;
  float distance = 0;
  bool found = false;
  if (counts && candidate < num_others) {
    const float3 p = load_point(mine.points, i), q = load_point(other.points + b * other.count * 3, candidate);
    distance = sq_distance(p.x, p.y, p.z, q.x, q.y, q.z);
    found = __float_as_uint(distance) == static_cast<unsigned>(key >> 32);
  }
  const unsigned lanes = __ballot_sync(kAllLanes, found) >> (lane - in_window) & ((1u << kWindow) - 1);
  const int winner = lanes == 0 ? 0 : __ffs(static_cast<int>(lanes)) - 1;
  if (exists && in_window == winner) {
    mine.distance[i] = distance;
    mine.index[i] = counts ? candidate : 0;
  }
}

// What a warp has in shared memory of a tiny set's columns.
struct TinyColumns {
  float4 point[kMaxTiny];
  uint4 nearest[kMaxTiny];  // the bits of the smallest distance, and the lanes that have it, for two rows a lane
};

// One warp per pair of clouds, kRows rows a lane: lane, lane + 32.
template <int kRows>
__global__ void __launch_bounds__(kBlockWarps* kWarpSize) tiny_kernel(Cloud rows, Cloud columns, int64_t B) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize, warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int64_t b = int64_t{blockIdx.x} * kBlockWarps + warp;
  if (b >= B) return;
  TinyColumns& shared = shared_memory<TinyColumns>()[warp];
  const int num_rows = static_cast<int>(rows.length(b)), num_columns = static_cast<int>(columns.length(b));
  const int64_t first_row = b * rows.count, first_column = b * columns.count;
  float3 point[kRows];
  float nearest[kRows];
  int index[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int row = lane + r * kWarpSize;
    point[r] = row < num_rows ? load_point(rows.points, first_row + row) : make_float3(kNan, kNan, kNan);
    nearest[r] = kInfinity;
    index[r] = 0;
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int j = lane + half * kWarpSize;
    if (j >= num_columns) continue;
    const float3 p = load_point(columns.points, first_column + j);
    shared.point[j] = make_float4(p.x, p.y, p.z, 0);
  }
  __syncwarp();
#pragma unroll 4
  for (int j = 0; j < num_columns; ++j) {
    const float4 q = shared.point[j];
    float d[kRows], lowest = kInfinity;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      d[r] = sq_distance(point[r].x, point[r].y, point[r].z, q.x, q.y, q.z);
      if (d[r] < nearest[r]) nearest[r] = d[r], index[r] = j;
      lowest = r == 0 ? d[r] : fminf(lowest, d[r]);
    }
    const unsigned lowest_bits = __reduce_min_sync(kAllLanes, __float_as_uint(lowest));
    unsigned lanes[2] = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r) lanes[r] = __ballot_sync(kAllLanes, __float_as_uint(d[r]) == lowest_bits);
    if (lane == 0) shared.nearest[j] = make_uint4(lowest_bits, lanes[0], lanes[1], 0);
  }
  __syncwarp();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int row = lane + r * kWarpSize;
    if (row >= rows.count) continue;
    if (index[r] == 0) {  // NaN is less than nothing: here it shows
      const float4 q = shared.point[0];
      nearest[r] = sq_distance(point[r].x, point[r].y, point[r].z, q.x, q.y, q.z);
    }
    rows.distance[first_row + row] = row < num_rows ? nearest[r] : 0;
    rows.index[first_row + row] = index[r];
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int j = lane + half * kWarpSize;
    if (j >= columns.count) continue;
    const uint4 found = j < num_columns ? shared.nearest[j] : make_uint4(0, 1, 0, 0);
    const int row =
        found.y != 0 ? __ffs(static_cast<int>(found.y)) - 1 : __ffs(static_cast<int>(found.z)) + kWarpSize - 1;
    columns.distance[first_column + j] = __uint_as_float(found.x);
    columns.index[first_column + j] = row < num_rows ? row : 0;  // beyond only where every distance is NaN
  }
}

// One side of the pairs of clouds in the backward pass.
struct Side {
  const float* points;         // [B, count, 3]
  const int64_t* lengths;      // [B] or null
  const float* grad_distance;  // [B, count]
  const int64_t* index;        // [B, count], into the other side
  float* grad;                 // [B, count, 3]
  int64_t count;
  bool own_first;
  InverseIndex readers;  // who of the other side has each point as its nearest; not for tiny sets

  // What the point at `place` of all points looks at, -1 where that counts nowhere.
  __device__ __forceinline__ int64_t nearest(int64_t place, int64_t b, int64_t num_others) const {
    if (place - b * count >= length_of(lengths, b, count)) return -1;
    return index[place] >= 0 && index[place] < num_others ? index[place] : -1;
  }
};

__device__ __forceinline__ float3 xyz(float4 p) { return make_float3(p.x, p.y, p.z); }

// The gradient of one point, added up in the order of the CPU: its own distance first on the side of x, last on that of
// y; the distances of the points that have it as their nearest in the order of those.
class GradientSum {
 public:
  __device__ __forceinline__ GradientSum(float3 point, bool own_first) : point_(point), own_first_(own_first) {}

  __device__ __forceinline__ void add_own(float grad, float3 nearest) {
    const float3 d = gradient(grad, point_, nearest);
    (own_first_ ? sum_ : own_) = d;
  }
  __device__ __forceinline__ void add_reader(float grad, float3 reader) {
    const float3 d = gradient(grad, reader, point_);
    sum_ = make_float3(sum_.x - d.x, sum_.y - d.y, sum_.z - d.z);
  }
  __device__ __forceinline__ float3 result() const {
    return make_float3(sum_.x + own_.x, sum_.y + own_.y, sum_.z + own_.z);
  }

 private:
  // Of grad * the squared distance between two points, to the first; to the second it is the opposite.
  static __device__ __forceinline__ float3 gradient(float grad, float3 a, float3 b) {
    return make_float3(2 * grad * (a.x - b.x), 2 * grad * (a.y - b.y), 2 * grad * (a.z - b.z));
  }

  float3 point_, own_ = {}, sum_ = {};
  bool own_first_;
};

__device__ __forceinline__ void store_point(float* points, int64_t i, float3 point) {
  points[3 * i] = point.x;
  points[3 * i + 1] = point.y;
  points[3 * i + 2] = point.z;
}

// What a warp has in shared memory of one side of a tiny set.
struct TinySide {
  float4 point[kMaxTiny];         // and the gradient of its distance
  unsigned readers[kMaxTiny][2];  // a bit for each point of the other side that has it as its nearest
};

// One warp per pair of clouds.
__global__ void __launch_bounds__(kBlockWarps* kWarpSize) tiny_backward_kernel(Side x, Side y, int64_t B) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize, warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int64_t b = int64_t{blockIdx.x} * kBlockWarps + warp;
  if (b >= B) return;
  TinySide* shared = shared_memory<TinySide>() + 2 * warp;
  const auto load = [&](const Side& side, TinySide& to) {
#pragma unroll 1
    for (int i = lane; i < side.count; i += kWarpSize) {
      const float3 p = load_point(side.points, b * side.count + i);
      to.point[i] = make_float4(p.x, p.y, p.z, side.grad_distance[b * side.count + i]);
      to.readers[i][0] = to.readers[i][1] = 0;
    }
  };
  const auto read = [&](const Side& side, TinySide& other, int64_t num_others) {
#pragma unroll 1
    for (int i = lane; i < side.count; i += kWarpSize) {
      const int64_t nearest = side.nearest(b * side.count + i, b, num_others);
      if (nearest >= 0) atomicOr(&other.readers[nearest][i / kWarpSize], 1u << i % kWarpSize);
    }
  };
  const auto add_up = [&](const Side& side, const TinySide& mine, const TinySide& other, int64_t num_others) {
#pragma unroll 1
    for (int i = lane; i < side.count; i += kWarpSize) {
      const int64_t place = b * side.count + i, nearest = side.nearest(place, b, num_others);
      const float4 me = mine.point[i];
      GradientSum sum(xyz(me), side.own_first);
      if (nearest >= 0) sum.add_own(me.w, xyz(other.point[nearest]));
      for (int half = 0; half < 2; ++half) {
        for (unsigned left = mine.readers[i][half]; left != 0; left &= left - 1) {
          const float4 reader = other.point[half * kWarpSize + __ffs(static_cast<int>(left)) - 1];
          sum.add_reader(reader.w, xyz(reader));
        }
      }
      store_point(side.grad, place, sum.result());
    }
  };
  load(x, shared[0]);
  load(y, shared[1]);
  __syncwarp();
  read(x, shared[1], y.count);
  read(y, shared[0], x.count);
  __syncwarp();
  add_up(x, shared[0], shared[1], y.count);
  add_up(y, shared[1], shared[0], x.count);
}

// One thread per point of either cloud.
__global__ void __launch_bounds__(kThreads) backward_kernel(Side x, Side y, int64_t B) {
  int64_t place = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const bool of_x = place < B * x.count;
  if (!of_x) place -= B * x.count;
  const Side mine = of_x ? x : y, other = of_x ? y : x;
  if (place >= B * mine.count) return;
  const int64_t b = place / mine.count, before = b * other.count;
  GradientSum sum(load_point(mine.points, place), mine.own_first);
  const int64_t nearest = mine.nearest(place, b, other.count);
  if (nearest >= 0) sum.add_own(mine.grad_distance[place], load_point(other.points, before + nearest));
  const int32_t* offsets = mine.readers.offsets + place + b;  // of count + 1 per cloud
  const int32_t* order = mine.readers.order + before;
  const int end = offsets[1];
  for (int i = offsets[0]; i < end; i += kAhead) {
    float3 reader[kAhead];
    float grad[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int64_t j = before + order[min(i + a, end - 1)];  // the last again where there are no more
      reader[a] = load_point(other.points, j);
      grad[a] = other.grad_distance[j];
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (i + a < end) sum.add_reader(grad[a], reader[a]);
    }
  }
  store_point(mine.grad, place, sum.result());
}

bool is_tiny(int64_t N, int64_t M, ChamferPath path) {
  return N <= kMaxTiny && M <= kMaxTiny && path != ChamferPath::large;
}

// A warp per item; they share nothing.
LaunchShape by_warp(int64_t count, std::size_t bytes_per_warp) {
  return {ceil_div<int64_t>(count, kBlockWarps), kBlockWarps * kWarpSize,
          kBlockWarps * static_cast<int64_t>(bytes_per_warp)};
}

// Ranges of columns so short that every SM has work, and not shorter.
Units units_of(int64_t B, int64_t rows, int64_t columns, int rows_per_warp, const Stream& stream) {
  Units units;
  units.row_blocks = ceil_div<int64_t>(rows, kWarpSize * rows_per_warp);
  const int64_t wanted = ceil_div(kUnitsPerSm * device_limits(stream).num_sms, B * units.row_blocks);
  const int64_t share = ceil_div(columns, wanted);
  units.columns = ceil_div<int64_t>(share < kMaxColumns ? share : kMaxColumns, kWarpSize) * kWarpSize;
  units.ranges = ceil_div(columns, units.columns);
  units.count = B * units.row_blocks * units.ranges;
  return units;
}

template <int kRows>
void launch_nearest(int64_t B, const Cloud& rows, const Cloud& columns, const Stream& stream) {
  const Units units = units_of(B, rows.count, columns.count, kRows, stream);
  launch("chamfer_distance: nearest", nearest_kernel<kRows>, by_warp(units.count, sizeof(Columns)), stream, rows,
         columns, units);
}

}  // namespace

int64_t chamfer_distance_keys(int64_t B, int64_t N, int64_t M, ChamferPath path) {
  return is_tiny(N, M, path) ? 0 : B * (N + M);
}

void chamfer_distance_cuda(const float* x, const float* y, const int64_t* lengths_x, const int64_t* lengths_y,
                           float* d_xy, float* d_yx, int64_t* index_xy, int64_t* index_yx, unsigned long long* keys,
                           int64_t B, int64_t N, int64_t M, ChamferPath path, const Stream& stream) {
  if (B == 0) return;
  Cloud rows{x, lengths_x, N, d_xy, index_xy, keys}, columns{y, lengths_y, M, d_yx, index_yx, keys + B * N};
  if (N < M) std::swap(rows, columns);
  if (is_tiny(N, M, path)) {
    launch("chamfer_distance: tiny", rows.count <= kWarpSize ? tiny_kernel<1> : tiny_kernel<2>,
           by_warp(B, sizeof(TinyColumns)), stream, rows, columns, B);
    return;
  }
  // 8 rows a lane cost 8 % less than 4, unless most of the last warp would have none.
  const int64_t eight = ceil_div<int64_t>(rows.count, 8 * kWarpSize),
                four = ceil_div<int64_t>(rows.count, 4 * kWarpSize);
  (2 * eight * 92 <= four * 100 ? launch_nearest<8> : launch_nearest<4>)(B, rows, columns, stream);
  launch("chamfer_distance: resolve", resolve_kernel, {ceil_div<int64_t>(B * (N + M) * kWindow, kThreads), kThreads},
         stream, rows, columns, B);
}

int64_t chamfer_distance_backward_workspace(int64_t B, int64_t N, int64_t M, ChamferPath path) {
  return is_tiny(N, M, path) ? 0 : inverse_index_size(B, N, M) + inverse_index_size(B, M, N);
}

void chamfer_distance_backward_cuda(const float* grad_d_xy, const float* grad_d_yx, const float* x, const float* y,
                                    const int64_t* lengths_x, const int64_t* lengths_y, const int64_t* index_xy,
                                    const int64_t* index_yx, float* grad_x, float* grad_y, int32_t* workspace,
                                    int64_t B, int64_t N, int64_t M, ChamferPath path, const Stream& stream) {
  if (B == 0) return;
  Side of_x{x, lengths_x, grad_d_xy, index_xy, grad_x, N, true, {}};
  Side of_y{y, lengths_y, grad_d_yx, index_yx, grad_y, M, false, {}};
  if (is_tiny(N, M, path)) {
    launch("chamfer_distance_backward: tiny", tiny_backward_kernel, by_warp(B, 2 * sizeof(TinySide)), stream, of_x,
           of_y, B);
    return;
  }
  of_y.readers = inverse_index_cuda(index_xy, lengths_x, workspace, B, N, M, stream);
  of_x.readers = inverse_index_cuda(index_yx, lengths_y, workspace + inverse_index_size(B, N, M), B, M, N, stream);
  launch("chamfer_distance_backward", backward_kernel, {ceil_div<int64_t>(B * (N + M), kThreads), kThreads}, stream,
         of_x, of_y, B);
}

}  // namespace jointmae
