// The points of a cloud in an order in which neighbours in space are neighbours in memory: along Hilbert's curve.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>

#include "common/hilbert_curve.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "common/simd.h"

namespace jointmae {

// Sorts the points by the cells of a grid over the cloud's bounding box that they lie in, cells along the curve; the
// same again within a cell of many points, so that one point far out does not spoil the order of all others. Points
// that stay together keep their order. The order does not depend on the number of threads.
template <Isa isa, typename T>
class CurveOrder {
 public:
  explicit CurveOrder(int64_t max_points)
      : entries_(max_points), sorted_(max_points), counts_(kMaxRanges * kMaxBuckets), extents_(kMaxRanges) {}

  // Afterwards at(i) is the index of the i-th of points [count, 3], which are finite; count is below 2^31.
  void sort(const T* points, int64_t count, int num_threads) { sort_range(points, 0, count, num_threads, Unsorted{}); }
  int64_t at(int64_t i) const { return static_cast<int64_t>(entries_.get()[i] & 0xFFFFFFFFu); }

 private:
  static constexpr int64_t kMaxRanges = 16;       // that threads work on
  static constexpr int64_t kRangeSize = 1 << 14;  // a range for a thread has at least so many points
  static constexpr int kDigitBits = 12;           // of the radix sort
  static constexpr int64_t kMaxBuckets = 1 << kDigitBits;
  static constexpr int64_t kCrowd = 256;  // points of one cell that are worth sorting again

  // Which point is at a place, before anything has been sorted and after.
  struct Unsorted {
    static constexpr bool kIdentity = true;
    int64_t operator()(int64_t i) const { return i; }
  };
  struct Sorted {
    static constexpr bool kIdentity = false;
    int64_t operator()(int64_t i) const { return static_cast<int64_t>(entries[i] & 0xFFFFFFFFu); }
    const uint64_t* entries;
  };

  struct Extent {
    T low[3], high[3];
  };

  // Disjoint ranges that together are begin..end-1: body(range, first, last), over threads.
  template <typename Body>
  static void for_ranges(int64_t begin, int64_t end, int64_t num_ranges, int num_threads, Body&& body) {
    const int64_t count = end - begin;
    parallel_for(num_ranges, 1, num_threads, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) {
        body(r, begin + count * r / num_ranges, begin + count * (r + 1) / num_ranges);
      }
    });
  }

  template <typename Order>
  void sort_range(const T* points, int64_t begin, int64_t end, int num_threads, Order order) {
    const int64_t count = end - begin;
    const int64_t num_ranges = std::clamp<int64_t>(count / kRangeSize, 1, std::min<int64_t>(num_threads, kMaxRanges));
    const int axis_bits = bits_per_axis(count);
    for_ranges(begin, end, num_ranges, num_threads, [=](int64_t r, int64_t first, int64_t last) {
      if constexpr (Order::kIdentity) {
        extents_[r] = extent_of(points, first, last);
      } else {
        extents_[r] = extent_of(points, first, last, order);
      }
    });
    const Extent extent = joined(num_ranges);
    const int num_bits = 3 * axis_bits, num_passes = (num_bits + kDigitBits - 1) / kDigitBits;
    const int digit_bits = (num_bits + num_passes - 1) / num_passes;
    uint64_t *from = entries_.get(), *to = sorted_.get();
    if (num_passes % 2 != 0) std::swap(from, to);  // so that the last pass ends where the entries belong
    for_ranges(begin, end, num_ranges, num_threads, [=](int64_t, int64_t first, int64_t last) {
      write_codes(points, first, last, extent, axis_bits, order, from);
    });
    for (int pass = 0; pass < num_passes; ++pass) {
      sort_by_digit(from, to, begin, end, num_ranges, 32 + pass * digit_bits, digit_bits, num_threads);
      std::swap(from, to);
    }
    sort_crowds(points, begin, end, num_threads);
  }

  // A cell of a surface, of which there are about 4^bits, has some twenty points.
  static int bits_per_axis(int64_t count) {
    int bits = 3;
    while (bits < 10 && (int64_t{20} << 2 * bits) < count) ++bits;
    return bits;
  }

  // Of points that follow each other in memory. Bounds of every so many numbers, so that each is of one axis.
  static Extent extent_of(const T* points, int64_t begin, int64_t end) {
    constexpr int64_t kWidth = 3 * Simd<isa, T>::kLanes;
    T low[kWidth], high[kWidth];
    for (int64_t i = 0; i < kWidth; ++i) low[i] = high[i] = points[3 * begin + i % 3];
    int64_t i = 3 * begin;
    for (; i + kWidth <= 3 * end; i += kWidth) widen(low, high, points + i, kWidth);
    widen(low, high, points + i, 3 * end - i);
    for (int64_t lane = 3; lane < kWidth; ++lane) {
      low[lane % 3] = low[lane] < low[lane % 3] ? low[lane] : low[lane % 3];
      high[lane % 3] = high[lane] > high[lane % 3] ? high[lane] : high[lane % 3];
    }
    return {{low[0], low[1], low[2]}, {high[0], high[1], high[2]}};
  }
  static void widen(T* __restrict__ low, T* __restrict__ high, const T* __restrict__ values, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      low[i] = values[i] < low[i] ? values[i] : low[i];
      high[i] = values[i] > high[i] ? values[i] : high[i];
    }
  }

  // `Order` gives the point at a place.
  template <typename Order>
  static Extent extent_of(const T* points, int64_t begin, int64_t end, Order&& order) {
    Extent extent = extent_of(points, order(begin), order(begin) + 1);
    for (int64_t i = begin + 1; i < end; ++i) widen(extent.low, extent.high, points + 3 * order(i), 3);
    return extent;
  }

  Extent joined(int64_t num_ranges) const {
    Extent all = extents_.get()[0];
    for (int64_t r = 1; r < num_ranges; ++r) {
      const Extent& other = extents_.get()[r];
      for (int c = 0; c < 3; ++c) {
        all.low[c] = other.low[c] < all.low[c] ? other.low[c] : all.low[c];
        all.high[c] = other.high[c] > all.high[c] ? other.high[c] : all.high[c];
      }
    }
    return all;
  }

  // The cell's number along the curve, above the index. Halves of coordinates, so that no difference overflows.
  template <typename Order>
  void write_codes(const T* __restrict__ points, int64_t begin, int64_t end, const Extent& extent, int axis_bits,
                   Order&& order, uint64_t* entries) {
    const T num_cells = static_cast<T>(1 << axis_bits), last_cell = num_cells - 1, half = T(1) / 2;
    T low[3], scale[3];
    for (int c = 0; c < 3; ++c) {
      low[c] = half * extent.low[c];
      const T size = half * extent.high[c] - low[c];
      scale[c] = size > std::numeric_limits<T>::min() * num_cells ? num_cells / size : T(0);
    }
    const T low_x = low[0], low_y = low[1], low_z = low[2], scale_x = scale[0], scale_y = scale[1], scale_z = scale[2];
    HilbertCells<isa> cells;
    for (int64_t first = begin; first < end; first += cells.kCount) {
      const int64_t count = std::min(cells.kCount, end - first);
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        const T* point = points + 3 * order(first + i);
        const T x = (half * point[0] - low_x) * scale_x, y = (half * point[1] - low_y) * scale_y;
        const T z = (half * point[2] - low_z) * scale_z;
        cells.x[i] = static_cast<uint32_t>(static_cast<int32_t>(x < last_cell ? x : last_cell));
        cells.y[i] = static_cast<uint32_t>(static_cast<int32_t>(y < last_cell ? y : last_cell));
        cells.z[i] = static_cast<uint32_t>(static_cast<int32_t>(z < last_cell ? z : last_cell));
      }
      cells.find_places(axis_bits);
      for (int64_t i = 0; i < count; ++i) {
        entries[first + i] = uint64_t{cells.place(i)} << 32 | static_cast<uint64_t>(order(first + i));
      }
    }
  }

  // One pass of the radix sort. Stable: a range's share of a bucket comes after the shares of the ranges before it.
  void sort_by_digit(const uint64_t* from, uint64_t* to, int64_t begin, int64_t end, int64_t num_ranges, int shift,
                     int digit_bits, int num_threads) {
    const int64_t num_buckets = int64_t{1} << digit_bits;
    const uint64_t mask = static_cast<uint64_t>(num_buckets - 1);
    int32_t* counts = counts_.get();
    for_ranges(begin, end, num_ranges, num_threads, [=](int64_t r, int64_t first, int64_t last) {
      int32_t* mine = counts + r * num_buckets;
      for (int64_t bucket = 0; bucket < num_buckets; ++bucket) mine[bucket] = 0;
      for (int64_t i = first; i < last; ++i) ++mine[from[i] >> shift & mask];
    });
    int32_t next = static_cast<int32_t>(begin);
    for (int32_t* share = counts; share < counts + num_buckets; ++share) {
      next = begin_shares(share, num_ranges, num_buckets, next);
    }
    for_ranges(begin, end, num_ranges, num_threads, [=](int64_t r, int64_t first, int64_t last) {
      int32_t* mine = counts + r * num_buckets;
      for (int64_t i = first; i < last; ++i) to[mine[from[i] >> shift & mask]++] = from[i];
    });
  }

  // The sizes of a bucket's shares become their beginnings, from `next` on; returns the end of the last one.
  static int32_t begin_shares(int32_t* share, int64_t num_ranges, int64_t stride, int32_t next) {
    for (;;) {
      const int32_t size = *share;
      *share = next;
      next += size;
      if (--num_ranges == 0) return next;
      share += stride;
    }
  }

  // Where many points share a cell, and are not all of the range: that cell gets a grid of its own. A crowd holds two
  // places that are half of kCrowd apart, wherever it begins.
  void sort_crowds(const T* points, int64_t begin, int64_t end, int num_threads) {
    constexpr int64_t kStride = kCrowd / 2;
    for (int64_t i = begin; i + kStride < end;) {
      int64_t first = i, last = i + kStride;
      if (code_at(first) == code_at(last)) {
        while (first > begin && code_at(first - 1) == code_at(i)) --first;
        while (last < end && code_at(last) == code_at(i)) ++last;
        if (last - first > kCrowd && last - first < end - begin) {
          sort_range(points, first, last, num_threads, Sorted{entries_.get()});
        }
      }
      i = last;
    }
  }
  uint64_t code_at(int64_t i) const { return entries_.get()[i] >> 32; }

  Scratch<isa, uint64_t> entries_, sorted_;  // the curve's code << 32 | index
  Scratch<isa, int32_t> counts_;             // [range, bucket]
  Scratch<isa, Extent> extents_;             // [range]
};

}  // namespace jointmae
