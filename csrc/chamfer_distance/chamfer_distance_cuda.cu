// Large clouds: each distance is computed once, for both directions. A warp has 256 rows (points of the larger cloud,
// 8 a lane, in registers) and a range of columns, which pass one by one. Per distance there is one minimum for the row
// and one for the column; where a minimum lies is known to a window of 8 columns or rows, the first that has it. What a
// warp finds goes as a key (distance, window) into a 64-bit minimum, which needs no order; a second kernel looks each
// window through for the index.
//
// Tiny sets: a thread per point of either cloud, several sets a block, everything in shared memory, in one launch.
//
// Backward: a thread per point adds up what it says itself and what the points say whose nearest it is, in order.
#include <utility>

#include "chamfer_distance/chamfer_distance.h"
#include "common/cuda.h"
#include "common/inverse_index.h"

namespace jointmae {
namespace {

constexpr int64_t kMaxTiny = 64;      // points; beyond, computing each distance once pays for two more launches
constexpr int kThreads = 256;         // of all kernels but `nearest_kernel`
constexpr int kNearestWarps = 4;      // per block; they share nothing
constexpr int kWindow = 8;            // candidates that a key leaves
constexpr int64_t kUnitsPerSm = 32;   // warps' worth of work, where there is enough of it
constexpr int64_t kMaxColumns = 512;  // per warp: by then loading the rows costs nothing beside
constexpr int kAhead = 4;             // loads in flight per thread
constexpr float kInfinity = __builtin_huge_valf();
constexpr float kNan = __builtin_nanf("");

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

template <int kRows>
__global__ void __launch_bounds__(kNearestWarps* kWarpSize, 5) nearest_kernel(Cloud rows, Cloud columns, Units units) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize, warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int64_t unit = int64_t{blockIdx.x} * kNearestWarps + warp;
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
    __syncwarp();
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

// Point p of a block's tiny sets, of which those of x come first.
struct TinyPoint {
  __device__ __forceinline__ TinyPoint(int p, int sets, int N, int M) : of_x(p < sets * N) {
    const unsigned place = static_cast<unsigned>(of_x ? p : p - sets * N), count = static_cast<unsigned>(of_x ? N : M);
    set = static_cast<int>(place / count);
    i = static_cast<int>(place % count);
    others = of_x ? sets * N + set * M : set * N;
  }
  bool of_x;
  int set, i;  // its own set, and where it is there
  int others;  // the first of the points that it looks at
};

__device__ __forceinline__ int sets_of_block(int num_sets, int64_t B) {
  const int64_t left = B - int64_t{blockIdx.x} * num_sets;
  return static_cast<int>(left < num_sets ? left : num_sets);
}

// One block per num_sets pairs of clouds.
__global__ void __launch_bounds__(kThreads) tiny_kernel(Cloud x, Cloud y, int64_t B, int num_sets) {
  auto* points = shared_memory<float4>();  // [sets, N], then [sets, M]
  const int sets = sets_of_block(num_sets, B), N = static_cast<int>(x.count), M = static_cast<int>(y.count);
  for (int p = static_cast<int>(threadIdx.x); p < sets * (N + M); p += kThreads) {
    const TinyPoint tiny(p, sets, N, M);
    const Cloud mine = tiny.of_x ? x : y;
    const int64_t b = int64_t{blockIdx.x} * num_sets + tiny.set;
    const float3 q = load_point(mine.points, b * mine.count + tiny.i);
    points[p] = make_float4(q.x, q.y, q.z, 0);
  }
  __syncthreads();
  for (int p = static_cast<int>(threadIdx.x); p < sets * (N + M); p += kThreads) {
    const TinyPoint tiny(p, sets, N, M);
    const Cloud mine = tiny.of_x ? x : y, other = tiny.of_x ? y : x;
    const int64_t b = int64_t{blockIdx.x} * num_sets + tiny.set;
    float distance = 0;
    int index = 0;
    if (tiny.i < mine.length(b)) {
      const float4 point = points[p], *others = points + tiny.others;
      const int num_others = static_cast<int>(other.length(b));
      distance = kInfinity;
#pragma unroll 4
      for (int j = 0; j < num_others; ++j) {
        const float d = sq_distance(point.x, point.y, point.z, others[j].x, others[j].y, others[j].z);
        if (d < distance) distance = d, index = j;
      }
      if (index == 0) {  // NaN shows, where nothing is nearer
        distance = sq_distance(point.x, point.y, point.z, others[0].x, others[0].y, others[0].z);
      }
    }
    mine.distance[b * mine.count + tiny.i] = distance;
    mine.index[b * mine.count + tiny.i] = index;
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
  InverseIndex readers;  // who of the other side has each point as its nearest; not for tiny sets

  // What the point at `place` of all points looks at, -1 where that counts nowhere.
  __device__ __forceinline__ int64_t nearest(int64_t place, int64_t b, int64_t num_others) const {
    if (place - b * count >= length_of(lengths, b, count)) return -1;
    return index[place] >= 0 && index[place] < num_others ? index[place] : -1;
  }
};

// The gradient to `from` of grad * its squared distance to `to`; the one to `to` is the opposite.
__device__ __forceinline__ float3 gradient(float grad, float3 from, float3 to) {
  return make_float3(2 * grad * (from.x - to.x), 2 * grad * (from.y - to.y), 2 * grad * (from.z - to.z));
}

__device__ __forceinline__ float3 sum_of(float3 a, float3 b) { return make_float3(a.x + b.x, a.y + b.y, a.z + b.z); }

__device__ __forceinline__ void subtract(float3& a, float3 b) { a.x -= b.x, a.y -= b.y, a.z -= b.z; }

__device__ __forceinline__ void store_point(float* points, int64_t i, float3 point) {
  points[3 * i] = point.x;
  points[3 * i + 1] = point.y;
  points[3 * i + 2] = point.z;
}

// A point of a tiny set.
struct alignas(16) Reader {
  float3 point;
  int nearest;
};

// As `tiny_kernel`; each point asks all others whose nearest they have.
__global__ void __launch_bounds__(kThreads) tiny_backward_kernel(Side x, Side y, int64_t B, int num_sets) {
  const int sets = sets_of_block(num_sets, B), N = static_cast<int>(x.count), M = static_cast<int>(y.count);
  auto* readers = shared_memory<Reader>();  // [sets, N], then [sets, M]
  auto* grads = reinterpret_cast<float*>(readers + sets * (N + M));
  for (int p = static_cast<int>(threadIdx.x); p < sets * (N + M); p += kThreads) {
    const TinyPoint tiny(p, sets, N, M);
    const Side mine = tiny.of_x ? x : y, other = tiny.of_x ? y : x;
    const int64_t b = int64_t{blockIdx.x} * num_sets + tiny.set, place = b * mine.count + tiny.i;
    readers[p] = {load_point(mine.points, place), static_cast<int>(mine.nearest(place, b, other.count))};
    grads[p] = mine.grad_distance[place];
  }
  __syncthreads();
  for (int p = static_cast<int>(threadIdx.x); p < sets * (N + M); p += kThreads) {
    const TinyPoint tiny(p, sets, N, M);
    const Side mine = tiny.of_x ? x : y, other = tiny.of_x ? y : x;
    const Reader me = readers[p], *others = readers + tiny.others;
    float3 own = {}, sum = {};
    if (me.nearest >= 0) own = gradient(grads[p], me.point, others[me.nearest].point);
    if (tiny.of_x) sum = own;
    for (int j = 0; j < other.count; ++j) {
      if (others[j].nearest == tiny.i) {
        subtract(sum, gradient(grads[tiny.others + j], others[j].point, me.point));
      }
    }
    if (!tiny.of_x) sum = sum_of(sum, own);
    store_point(mine.grad, (int64_t{blockIdx.x} * num_sets + tiny.set) * mine.count + tiny.i, sum);
  }
}

// One thread per point of either cloud.
__global__ void __launch_bounds__(kThreads) backward_kernel(Side x, Side y, int64_t B) {
  int64_t place = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const bool of_x = place < B * x.count;
  if (!of_x) place -= B * x.count;
  const Side mine = of_x ? x : y, other = of_x ? y : x;
  if (place >= B * mine.count) return;
  const int64_t b = place / mine.count, before = b * other.count;
  const float3 point = load_point(mine.points, place);
  float3 own = {}, sum = {};
  const int64_t nearest = mine.nearest(place, b, other.count);
  if (nearest >= 0) own = gradient(mine.grad_distance[place], point, load_point(other.points, before + nearest));
  if (of_x) sum = own;
  const int32_t* offsets = mine.readers.offsets + place + b;  // of count + 1 per cloud
  const int end = offsets[1];
  for (int i = offsets[0]; i < end; i += kAhead) {
    float3 reader[kAhead];
    float grad[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (i + a >= end) continue;
      const int64_t j = before + mine.readers.order[before + i + a];
      reader[a] = load_point(other.points, j);
      grad[a] = other.grad_distance[j];
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (i + a < end) subtract(sum, gradient(grad[a], reader[a], point));
    }
  }
  if (!of_x) sum = sum_of(sum, own);
  store_point(mine.grad, place, sum);
}

bool is_tiny(int64_t N, int64_t M, ChamferPath path) {
  return path == ChamferPath::automatic ? N <= kMaxTiny && M <= kMaxTiny : path == ChamferPath::tiny;
}

// How many tiny sets a block has: a thread per point.
int sets_per_block(int64_t N, int64_t M) { return N + M < kThreads ? static_cast<int>(kThreads / (N + M)) : 1; }

LaunchShape tiny_shape(int64_t B, int64_t N, int64_t M, std::size_t bytes_per_point) {
  const int64_t sets = sets_per_block(N, M);
  return {ceil_div(B, sets), kThreads, sets * (N + M) * static_cast<int64_t>(bytes_per_point)};
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
  const LaunchShape shape{ceil_div<int64_t>(units.count, kNearestWarps), kNearestWarps * kWarpSize,
                          kNearestWarps * static_cast<int64_t>(sizeof(Columns))};
  launch("chamfer_distance: nearest", nearest_kernel<kRows>, shape, stream, rows, columns, units);
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
  if (is_tiny(N, M, path)) {
    launch("chamfer_distance: tiny", tiny_kernel, tiny_shape(B, N, M, sizeof(float4)), stream, rows, columns, B,
           sets_per_block(N, M));
    return;
  }
  if (N < M) std::swap(rows, columns);
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
  Side of_x{x, lengths_x, grad_d_xy, index_xy, grad_x, N, {}}, of_y{y, lengths_y, grad_d_yx, index_yx, grad_y, M, {}};
  if (is_tiny(N, M, path)) {
    launch("chamfer_distance_backward: tiny", tiny_backward_kernel, tiny_shape(B, N, M, sizeof(Reader) + sizeof(float)),
           stream, of_x, of_y, B, sets_per_block(N, M));
    return;
  }
  of_y.readers = inverse_index_cuda(index_xy, lengths_x, workspace, B, N, M, stream);
  of_x.readers = inverse_index_cuda(index_yx, lengths_y, workspace + inverse_index_size(B, N, M), B, M, N, stream);
  launch("chamfer_distance_backward", backward_kernel, {ceil_div<int64_t>(B * (N + M), kThreads), kThreads}, stream,
         of_x, of_y, B);
}

}  // namespace jointmae
