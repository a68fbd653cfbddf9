// The nearest points of one cloud for another, by boxes: a box of queries, which lie close together, meets those boxes
// that may hold something nearer than what its queries have, and of them those blocks of points. Vectors run along the
// queries, so that nothing is reduced across lanes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common/boxes.h"
#include "common/coordinates.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "common/simd.h"

#if defined(__GNUC__)
#define JOINTMAE_NOINLINE __attribute__((noinline))
#else
#define JOINTMAE_NOINLINE
#endif

namespace jointmae {

inline constexpr int64_t kBlockSize = 16;  // points that are met together
inline constexpr int64_t kBlocksInBox = kBoxSize / kBlockSize;

// A cloud in boxes, and the corners of their blocks.
template <Isa isa, typename T>
class BoxedCloud {
  using S = Simd<isa, T>;
  using Vector = typename S::Vector;

 public:
  explicit BoxedCloud(int64_t max_points)
      : boxes(max_points), blocks(kBlocksInBox * Boxes<isa, T>::boxes_for(max_points)) {}

  void build(const T* points, int64_t count, int num_threads) {
    boxes.build(points, count, num_threads);
    const int64_t num_blocks = kBlocksInBox * boxes.num_boxes;
    parallel_for(num_blocks, 4096, num_threads, [=](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; block += S::kLanes) {
        const int64_t count = std::min(S::kLanes, end - block);
        bound(boxes.x, block, count, blocks.low[0], blocks.high[0]);
        bound(boxes.y, block, count, blocks.low[1], blocks.high[1]);
        bound(boxes.z, block, count, blocks.low[2], blocks.high[2]);
      }
    });
    blocks.pad(num_blocks);
  }

  Boxes<isa, T> boxes;
  Bounds<isa, T> blocks;  // low is infinity and high -infinity where a block has no points

 private:
  // The blocks from `block` on, at most kLanes of them, along one axis.
  static void bound(const T* values, int64_t block, int64_t count, T* low, T* high) {
    Vector lowest[S::kLanes], highest[S::kLanes];
    for (int64_t b = 0; b < S::kLanes; ++b) {
      lowest[b] = S::broadcast(std::numeric_limits<T>::infinity()), highest[b] = -lowest[b];
      const T* in_block = values + (block + std::min(b, count - 1)) * kBlockSize;
      for (int64_t i = 0; i < kBlockSize; i += S::kLanes) {
        const Vector value = S::load(in_block + i);
        lowest[b] = value < lowest[b] ? value : lowest[b];  // not NaN, which is after the last point
        highest[b] = value > highest[b] ? value : highest[b];
      }
    }
    S::transpose(lowest);
    S::transpose(highest);
    for (int64_t lane = 1; lane < S::kLanes; ++lane) {
      lowest[0] = lowest[lane] < lowest[0] ? lowest[lane] : lowest[0];
      highest[0] = highest[lane] > highest[0] ? highest[lane] : highest[0];
    }
    T lows[S::kLanes], highs[S::kLanes];
    S::store(lows, lowest[0]);
    S::store(highs, highest[0]);
    for (int64_t b = 0; b < count; ++b) low[block + b] = lows[b], high[block + b] = highs[b];
  }
};

template <Isa isa, typename T>
class BoxSearch {
  using S = Simd<isa, T>;
  using Vector = typename S::Vector;
  using Index = typename S::Index;
  using IndexVector = typename S::IndexVector;
  static constexpr int64_t kVectors = kBoxSize / S::kLanes;  // of queries in a box
  static constexpr Index kUnknown = -1, kNoPoint = Boxes<isa, T>::kNoPoint;

 public:
  BoxSearch(const BoxedCloud<isa, T>& from, const BoxedCloud<isa, T>& to, T* sq_dists, int64_t* indices)
      : from_(from), to_(to), points_(to.boxes), sq_dists_(sq_dists), indices_(indices) {}

  // The queries in boxes begin..end-1 of `from`: sq_dists and indices get their results, where the points were.
  void run(int64_t begin, int64_t end) {
    int64_t home = 0;
    for (int64_t box = begin; box < end; ++box) {
      home = box_near(box, home);
      load(box);
      for (Queries& queries : queries_) {
        for (int64_t block = home * kBlocksInBox; block < (home + 1) * kBlocksInBox; ++block) meet(queries, block);
        queries.farthest = -S::lowest(-queries.sq_dist);
      }
      meet_others(box, home);
      write(box);
    }
  }

 private:
  // kLanes of them, and the nearest that they have met.
  struct Queries {
    Vector x, y, z, sq_dist;
    IndexVector block;  // where it is
    IndexVector index;  // which one it is, or kUnknown: looked up when needed
    T farthest;         // the largest of sq_dist
    T low[3], high[3];  // the corners of their block
  };

  void load(int64_t box) {
    for (int64_t v = 0; v < kVectors; ++v) {
      const int64_t i = box * kBoxSize + v * S::kLanes, block = i / kBlockSize;
      Queries& queries = queries_[v];
      queries.x = S::load(from_.boxes.x + i), queries.y = S::load(from_.boxes.y + i);
      queries.z = S::load(from_.boxes.z + i);
      // Where there is no query (x is NaN) nothing is nearer than what it has.
      const Vector infinity = S::broadcast(std::numeric_limits<T>::infinity());
      queries.sq_dist = queries.x == queries.x ? infinity : -infinity;
      queries.block = S::broadcast_index(0), queries.index = S::broadcast_index(kNoPoint);
      for (int c = 0; c < 3; ++c) {
        queries.low[c] = from_.blocks.low[c][block], queries.high[c] = from_.blocks.high[c][block];
      }
    }
  }

  // A box to start from: the one whose centre is closest to that of the queries' box. `guess` is any.
  int64_t box_near(int64_t box, int64_t guess) const {
    T center[3];
    for (int c = 0; c < 3; ++c) center[c] = from_.boxes.bounds.low[c][box] / 2 + from_.boxes.bounds.high[c][box] / 2;
    const Vector x = S::broadcast(center[0]), y = S::broadcast(center[1]), z = S::broadcast(center[2]);
    T least = std::numeric_limits<T>::infinity();
    const auto look_at_group = [&](int64_t group) {
      const int64_t begin = group * kBoxesInGroup, end = std::min(begin + kBoxesInGroup, points_.num_boxes);
      for (int64_t i = begin; i < end; i += S::kLanes) {
        const Vector d = sq_distance<isa>(x, y, z, middle(0, i), middle(1, i), middle(2, i));
        const T lowest = S::lowest(d);
        if (lowest < least) least = lowest, guess = i + S::first_equal(d, S::broadcast(lowest));
      }
    };
    look_at_group(guess / kBoxesInGroup);
    for (int64_t first = 0; first < points_.num_groups; first += S::kLanes) {
      const Vector bound = points_.group_bounds.sq_distance_from(x, y, z, first);
      for (unsigned groups = S::at_most(bound, S::broadcast(least)); groups != 0; groups &= groups - 1) {
        look_at_group(first + lowest_bit(groups));
      }
    }
    return guess;
  }

  Vector middle(int axis, int64_t i) const {
    return (S::load(points_.bounds.low[axis] + i) + S::load(points_.bounds.high[axis] + i)) / 2;
  }

  void meet_others(int64_t box, int64_t home) {
    T low[3], high[3];
    for (int c = 0; c < 3; ++c) low[c] = from_.boxes.bounds.low[c][box], high[c] = from_.boxes.bounds.high[c][box];
    T largest = queries_[0].farthest;
    for (int64_t v = 1; v < kVectors; ++v) largest = std::max(largest, queries_[v].farthest);
    for (int64_t first = 0; first < points_.num_groups; first += S::kLanes) {
      const Vector bound = points_.group_bounds.sq_distance_from(low, high, first);
      for (unsigned groups = S::at_most(bound, S::broadcast(largest)); groups != 0; groups &= groups - 1) {
        for (Queries& queries : queries_) meet_group(queries, first + lowest_bit(groups), home);
      }
    }
  }

  void meet_group(Queries& queries, int64_t group, int64_t home) {
    const int64_t begin = group * kBoxesInGroup, end = std::min(begin + kBoxesInGroup, points_.num_boxes);
    for (int64_t box = begin; box < end; box += S::kLanes) {
      const Vector limit = S::broadcast(queries.farthest);
      unsigned boxes = S::at_most(points_.bounds.sq_distance_from(queries.low, queries.high, box), limit);
      while (boxes != 0) {
        const int64_t several = lowest_bit(boxes) / kBoxesAtOnce * kBoxesAtOnce;
        if (box + several >= end) break;  // no boxes, but as near as any where all distances are infinite
        meet_boxes(queries, box + several, home);
        boxes &= ~(((1u << kBoxesAtOnce) - 1) << several);
      }
    }
  }

  // kBoxesAtOnce boxes from `box` on. All their blocks are tested before any is met: so there is nothing to be guessed.
  void meet_boxes(Queries& queries, int64_t box, int64_t home) {
    const int64_t first = box * kBlocksInBox;
    const Vector limit = S::broadcast(queries.farthest);
    int64_t blocks[S::kLanes], count = 0;
    unsigned close = S::at_most(to_.blocks.sq_distance_from(queries.low, queries.high, first), limit);
    for (; close != 0; close &= close - 1) {
      blocks[count] = first + lowest_bit(close);
      const int64_t in_box = blocks[count] / kBlocksInBox;
      count += in_box != home && in_box < points_.num_boxes && may_improve(queries, blocks[count]);
    }
    for (int64_t i = 0; i < count; ++i) meet(queries, blocks[i]);
    queries.farthest = -S::lowest(-queries.sq_dist);
  }

  // Whether a block may hold something nearer for one of the queries, or as near with a lower index.
  bool may_improve(Queries& queries, int64_t block) {
    const Vector dx = outside(queries.x, to_.blocks.low[0][block], to_.blocks.high[0][block]);
    const Vector dy = outside(queries.y, to_.blocks.low[1][block], to_.blocks.high[1][block]);
    const Vector dz = outside(queries.z, to_.blocks.low[2][block], to_.blocks.high[2][block]);
    const Vector bound = (dx * dx + dy * dy) + dz * dz;
    const unsigned at_most = S::at_most(bound, queries.sq_dist), at_least = S::at_most(queries.sq_dist, bound);
    const unsigned ties = at_most & at_least;
    return ties == 0 || ties != at_most ? at_most != 0 : may_break_ties(queries, block, ties);
  }

  // How far along an axis, up to the sign, 0 inside.
  static Vector outside(Vector value, T low, T high) {
    const Vector lows = S::broadcast(low), highs = S::broadcast(high);
    const Vector from_low = value > lows ? value : lows;
    return value - (from_low < highs ? from_low : highs);
  }

  void meet(Queries& queries, int64_t block) {
    const Vector nearest = lowest_of(queries, block);
    const unsigned ties = S::at_most(nearest, queries.sq_dist) & S::at_most(queries.sq_dist, nearest);
    const auto closer = nearest < queries.sq_dist;
    queries.sq_dist = closer ? nearest : queries.sq_dist;
    queries.block = closer ? S::broadcast_index(static_cast<Index>(block)) : queries.block;
    queries.index = closer ? S::broadcast_index(kUnknown) : queries.index;
    if (ties != 0) break_ties(queries, block, ties);
  }

  // Of each query to the points of a block.
  JOINTMAE_NOINLINE Vector lowest_of(const Queries& queries, int64_t block) const {
    const Vector x = queries.x, y = queries.y, z = queries.z;
    Vector nearest = S::broadcast(std::numeric_limits<T>::infinity());
    for (int64_t p = block * kBlockSize; p < (block + 1) * kBlockSize; ++p) {
      const Vector px = S::broadcast(points_.x[p]), py = S::broadcast(points_.y[p]), pz = S::broadcast(points_.z[p]);
      const Vector d = sq_distance<isa>(x, y, z, px, py, pz);
      nearest = d < nearest ? d : nearest;
    }
    return nearest;
  }

  JOINTMAE_NOINLINE bool may_break_ties(Queries& queries, int64_t block, unsigned ties) {
    const Index* index = points_.index + block * kBlockSize;
    Index lowest = index[0];
    for (int64_t p = 1; p < kBlockSize; ++p) lowest = std::min<Index>(lowest, index[p]);
    for (; ties != 0; ties &= ties - 1) {
      if (lowest < index_of(queries, lowest_bit(ties))) return true;
    }
    return false;
  }

  // Queries for which `block` holds points as near as what they have.
  JOINTMAE_NOINLINE void break_ties(Queries& queries, int64_t block, unsigned ties) {
    for (; ties != 0; ties &= ties - 1) {
      const int64_t lane = lowest_bit(ties);
      const Index found = lowest_index(queries.x[lane], queries.y[lane], queries.z[lane], queries.sq_dist[lane], block);
      if (found < index_of(queries, lane)) queries.block[lane] = static_cast<Index>(block), queries.index[lane] = found;
    }
  }

  Index index_of(Queries& queries, int64_t lane) {
    if (queries.index[lane] == kUnknown) {
      queries.index[lane] =
          lowest_index(queries.x[lane], queries.y[lane], queries.z[lane], queries.sq_dist[lane], queries.block[lane]);
    }
    return queries.index[lane];
  }

  // Of the points of `block` at this distance from (x, y, z).
  Index lowest_index(T x, T y, T z, T sq_dist, int64_t block) const {
    const Vector qx = S::broadcast(x), qy = S::broadcast(y), qz = S::broadcast(z), wanted = S::broadcast(sq_dist);
    Index lowest = kNoPoint;
    for (int64_t p = block * kBlockSize; p < (block + 1) * kBlockSize; p += S::kLanes) {
      const Vector px = S::load(points_.x + p), py = S::load(points_.y + p), pz = S::load(points_.z + p);
      unsigned found = S::at_most(sq_distance<isa>(qx, qy, qz, px, py, pz), wanted);
      for (; found != 0; found &= found - 1) lowest = std::min<Index>(lowest, points_.index[p + lowest_bit(found)]);
    }
    return lowest;
  }

  void write(int64_t box) {
    for (int64_t v = 0; v < kVectors; ++v) {
      T sq_dist[S::kLanes];
      Index block[S::kLanes], index[S::kLanes];
      S::store(sq_dist, queries_[v].sq_dist);
      S::store_index(block, queries_[v].block);
      S::store_index(index, queries_[v].index);
      const int64_t begin = box * kBoxSize + v * S::kLanes, count = std::min(S::kLanes, from_.boxes.num_points - begin);
      for (int64_t lane = 0; lane < count; ++lane) {
        const int64_t i = begin + lane, query = from_.boxes.index[i];
        sq_dists_[query] = sq_dist[lane];
        indices_[query] = index[lane] != kUnknown ? index[lane]
                                                  : lowest_index(from_.boxes.x[i], from_.boxes.y[i], from_.boxes.z[i],
                                                                 sq_dist[lane], block[lane]);
      }
    }
  }

  static int64_t lowest_bit(unsigned bits) { return __builtin_ctz(bits); }

  static constexpr int64_t kBoxesAtOnce = std::max<int64_t>(S::kLanes / kBlocksInBox, 1);

  const BoxedCloud<isa, T>&from_, &to_;
  const Boxes<isa, T>& points_;
  T* sq_dists_;
  int64_t* indices_;
  Queries queries_[kVectors];
};

}  // namespace jointmae
