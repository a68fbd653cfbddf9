// The points of a cloud in an order in which neighbours in space are neighbours in memory: along Morton's curve.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "common/isa.h"
#include "common/parallel.h"
#include "common/scratch.h"

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
  void sort(const T* points, int64_t count, int num_threads) {
    sort_range(points, 0, count, num_threads, [](int64_t i) { return i; });
  }
  int64_t at(int64_t i) const { return static_cast<int64_t>(entries_.get()[i] & 0xFFFFFFFFu); }

 private:
  static constexpr int64_t kMaxRanges = 16;       // that threads work on
  static constexpr int64_t kRangeSize = 1 << 14;  // a range for a thread has at least so many points
  static constexpr int kDigitBits = 11;           // of the radix sort
  static constexpr int64_t kMaxBuckets = 1 << kDigitBits;
  static constexpr int64_t kCrowd = 256;  // points of one cell that are worth sorting again

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
    for_ranges(begin, end, num_ranges, num_threads,
               [=](int64_t r, int64_t first, int64_t last) { extents_[r] = extent_of(points, first, last, order); });
    const Extent extent = joined(num_ranges);
    for_ranges(begin, end, num_ranges, num_threads, [=](int64_t, int64_t first, int64_t last) {
      write_codes(points, first, last, extent, axis_bits, order);
    });
    const int num_bits = 3 * axis_bits, num_passes = (num_bits + kDigitBits - 1) / kDigitBits;
    const int digit_bits = (num_bits + num_passes - 1) / num_passes;
    uint64_t *from = entries_.get(), *to = sorted_.get();
    for (int pass = 0; pass < num_passes; ++pass) {
      sort_by_digit(from, to, begin, end, num_ranges, 32 + pass * digit_bits, digit_bits, num_threads);
      std::swap(from, to);
    }
    if (from != entries_.get()) std::memcpy(to + begin, from + begin, sizeof *to * static_cast<std::size_t>(count));
    sort_crowds(points, begin, end, num_threads);
  }

  // A cell of a surface, of which there are about 4^bits, has some ten points.
  static int bits_per_axis(int64_t count) {
    int bits = 3;
    while (bits < 10 && (int64_t{10} << 2 * bits) < count) ++bits;
    return bits;
  }

  // `Order` gives the point at a place: any, or `identity` while nothing has been sorted and loops can be vectors.
  template <typename Order>
  static Extent extent_of(const T* __restrict__ points, int64_t begin, int64_t end, Order&& order) {
    Extent extent;
    for (int c = 0; c < 3; ++c) {
      T low = points[3 * order(begin) + c], high = low;
#pragma omp simd reduction(min : low) reduction(max : high)
      for (int64_t i = begin; i < end; ++i) {
        const T value = points[3 * order(i) + c];
        low = value < low ? value : low;
        high = value > high ? value : high;
      }
      extent.low[c] = low, extent.high[c] = high;
    }
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
                   Order&& order) {
    const T num_cells = static_cast<T>(1 << axis_bits), last_cell = num_cells - 1, half = T(1) / 2;
    T low[3], scale[3];
    for (int c = 0; c < 3; ++c) {
      low[c] = half * extent.low[c];
      const T size = half * extent.high[c] - low[c];
      scale[c] = size > std::numeric_limits<T>::min() * num_cells ? num_cells / size : T(0);
    }
    const T low_x = low[0], low_y = low[1], low_z = low[2], scale_x = scale[0], scale_y = scale[1], scale_z = scale[2];
    uint64_t* __restrict__ entries = entries_.get();
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      const int64_t p = order(i);
      const T cx = (half * points[3 * p] - low_x) * scale_x, cy = (half * points[3 * p + 1] - low_y) * scale_y;
      const T cz = (half * points[3 * p + 2] - low_z) * scale_z;
      const int32_t x = static_cast<int32_t>(cx < last_cell ? cx : last_cell);
      const int32_t y = static_cast<int32_t>(cy < last_cell ? cy : last_cell);
      const int32_t z = static_cast<int32_t>(cz < last_cell ? cz : last_cell);
      const uint32_t code = spread(x) | spread(y) << 1 | spread(z) << 2;
      entries[i] = uint64_t{code} << 32 | static_cast<uint64_t>(p);
    }
  }

  // The ten low bits, each three places from the next.
  static uint32_t spread(int32_t cell) {
    uint32_t bits = static_cast<uint32_t>(cell);
    bits = (bits | bits << 16) & 0x030000FFu;
    bits = (bits | bits << 8) & 0x0300F00Fu;
    bits = (bits | bits << 4) & 0x030C30C3u;
    return (bits | bits << 2) & 0x09249249u;
  }

  // One pass of the radix sort. Stable: a range's share of a bucket comes after the shares of the ranges before it.
  void sort_by_digit(const uint64_t* from, uint64_t* to, int64_t begin, int64_t end, int64_t num_ranges, int shift,
                     int digit_bits, int num_threads) {
    const int64_t num_buckets = int64_t{1} << digit_bits;
    const uint64_t mask = static_cast<uint64_t>(num_buckets - 1);
    int64_t* counts = counts_.get();
    for_ranges(begin, end, num_ranges, num_threads, [=](int64_t r, int64_t first, int64_t last) {
      int64_t* mine = counts + r * num_buckets;
      for (int64_t bucket = 0; bucket < num_buckets; ++bucket) mine[bucket] = 0;
      for (int64_t i = first; i < last; ++i) ++mine[from[i] >> shift & mask];
    });
    int64_t next = begin;
    for (int64_t bucket = 0; bucket < num_buckets; ++bucket) {
      for (int64_t r = 0; r < num_ranges; ++r) {
        const int64_t share = counts[r * num_buckets + bucket];
        counts[r * num_buckets + bucket] = next;
        next += share;
      }
    }
    for_ranges(begin, end, num_ranges, num_threads, [=](int64_t r, int64_t first, int64_t last) {
      int64_t* mine = counts + r * num_buckets;
      for (int64_t i = first; i < last; ++i) to[mine[from[i] >> shift & mask]++] = from[i];
    });
  }

  // Where many points share a cell, and are not all of the range: that cell gets a grid of its own.
  void sort_crowds(const T* points, int64_t begin, int64_t end, int num_threads) {
    for (int64_t first = begin, last = begin; first < end; first = last) {
      while (last < end && entries_[last] >> 32 == entries_[first] >> 32) ++last;
      if (last - first > kCrowd && last - first < end - begin) {
        sort_range(points, first, last, num_threads, [this](int64_t i) { return at(i); });
      }
    }
  }

  Scratch<isa, uint64_t> entries_, sorted_;  // the curve's code << 32 | index
  Scratch<isa, int64_t> counts_;             // [range, bucket]
  Scratch<isa, Extent> extents_;             // [range]
};

}  // namespace jointmae
