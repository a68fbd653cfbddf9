// The nearest points of one cloud for another, by boxes: a box of queries, which lie close together, meets those boxes
// that may hold something nearer than what its queries have, and of them those blocks of points. Vectors run along the
// queries, so that nothing is reduced across lanes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "chamfer_distance/boxed_cloud.h"
#include "common/boxes.h"
#include "common/coordinates.h"
#include "common/isa.h"
#include "common/simd.h"

#if defined(__GNUC__)  // for what is rare, so that the rest keeps its registers
#define JOINTMAE_NOINLINE __attribute__((noinline))
#else
#define JOINTMAE_NOINLINE
#endif

namespace jointmae {

template <Isa isa, typename T>
class BoxSearch {
  using S = Simd<isa, T>;
  using Vector = typename S::Vector;
  using Index = typename S::Index;
  static constexpr int64_t kVectors = kBoxSize / S::kLanes;  // of queries in a box
  static constexpr int64_t kBoxesAtOnce = S::kLanes > kBlocksInBox ? S::kLanes / kBlocksInBox : 1;
  static constexpr Index kUnknown = -1, kNoPoint = Boxes<isa, T>::kNoPoint;

 public:
  BoxSearch(const BoxedCloud<isa, T>& from, const BoxedCloud<isa, T>& to, T* sq_dists, int64_t* indices)
      : from_(from), to_(to), points_(to.boxes), sq_dists_(sq_dists), indices_(indices) {}

  // How many times queries of a vector have met a block, or had to see whether that matters.
  int64_t effort = 0;

  // The queries in boxes begin..end-1 of `from`: sq_dists and indices get their results, where the points were.
  void run(int64_t begin, int64_t end) {
    int64_t home = 0;
    for (int64_t box = begin; box < end; ++box) {
      home = box_near(box, home);
      load(box);
      for (Queries& queries : queries_) {
        for (int64_t block = home * kBlocksInBox; block < (home + 1) * kBlocksInBox; ++block) meet(queries, block);
        queries.farthest = -S::lowest(-S::load(queries.sq_dist));
      }
      meet_others(box, home);
      write(box);
    }
  }

  // Where clouds are such that most boxes may hold the nearest point (one inside of the other, or all points in one
  // place), to see that takes longer than meeting every point both ways at once. A few boxes show it.
  bool is_worth_it(int64_t num_probes) {
    for (int64_t probe = 0; probe < num_probes; ++probe) {
      const int64_t box = from_.boxes.num_boxes * probe / num_probes;
      run(box, box + 1);
    }
    return 2 * effort < num_probes * kVectors * points_.num_boxes * kBlocksInBox;
  }

 private:
  // kLanes of them, and the nearest that they have met.
  struct Queries {
    alignas(S::kBytes) T x[S::kLanes], y[S::kLanes], z[S::kLanes], sq_dist[S::kLanes];
    alignas(S::kBytes) Index block[S::kLanes];  // where it is
    alignas(S::kBytes) Index index[S::kLanes];  // which one it is, or kUnknown: looked up when needed
    T farthest;                                 // the largest of sq_dist
    T low[3], high[3];                          // the corners of their block
  };

  void load(int64_t box) {
    for (int64_t v = 0; v < kVectors; ++v) {
      const int64_t i = box * kBoxSize + v * S::kLanes, block = i / kBlockSize;
      Queries& queries = queries_[v];
      for (int64_t lane = 0; lane < S::kLanes; ++lane) {
        queries.x[lane] = from_.boxes.x[i + lane], queries.y[lane] = from_.boxes.y[i + lane];
        queries.z[lane] = from_.boxes.z[i + lane];
        // Where there is no query nothing is nearer than what it has.
        const T infinity = std::numeric_limits<T>::infinity();
        queries.sq_dist[lane] = i + lane < from_.boxes.num_points ? infinity : -infinity;
        queries.block[lane] = 0, queries.index[lane] = kNoPoint;
      }
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
        look_at_group(first + S::lowest_bit(groups));
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
        for (Queries& queries : queries_) meet_group(queries, first + S::lowest_bit(groups), home);
      }
    }
  }

  void meet_group(Queries& queries, int64_t group, int64_t home) {
    const int64_t begin = group * kBoxesInGroup, end = std::min(begin + kBoxesInGroup, points_.num_boxes);
    for (int64_t box = begin; box < end; box += S::kLanes) {
      const Vector limit = S::broadcast(queries.farthest);
      unsigned boxes = S::at_most(points_.bounds.sq_distance_from(queries.low, queries.high, box), limit);
      while (boxes != 0) {
        const int64_t several = S::lowest_bit(boxes) / kBoxesAtOnce * kBoxesAtOnce;
        if (box + several >= end) break;  // no boxes, but as near as any where all distances are infinite
        meet_boxes(queries, box + several, home);
        boxes &= ~(((1u << kBoxesAtOnce) - 1) << several);
      }
    }
  }

  // kBoxesAtOnce boxes from `box` on. All their blocks are tested before any is met: so there is nothing to be guessed.
  void meet_boxes(Queries& queries, int64_t box, int64_t home) {
    const int64_t first = box * kBlocksInBox, end = std::min(box + kBoxesAtOnce, points_.num_boxes) * kBlocksInBox;
    const Vector limit = S::broadcast(queries.farthest);
    int64_t blocks[kBoxesAtOnce * kBlocksInBox], count = 0;
    for (int64_t some = first; some < end; some += S::kLanes) {
      unsigned close = S::at_most(to_.blocks.sq_distance_from(queries.low, queries.high, some), limit);
      for (; close != 0; close &= close - 1) {
        const int64_t block = some + S::lowest_bit(close);
        blocks[count] = block;
        count += block / kBlocksInBox != home && block < end && may_improve(queries, block);
      }
    }
    for (int64_t i = 0; i < count; ++i) meet(queries, blocks[i]);
    queries.farthest = -S::lowest(-S::load(queries.sq_dist));
  }

  // Whether a block may hold something nearer for one of the queries, or as near with a lower index.
  bool may_improve(Queries& queries, int64_t block) {
    const Vector dx = outside(S::load(queries.x), to_.blocks.low[0][block], to_.blocks.high[0][block]);
    const Vector dy = outside(S::load(queries.y), to_.blocks.low[1][block], to_.blocks.high[1][block]);
    const Vector dz = outside(S::load(queries.z), to_.blocks.low[2][block], to_.blocks.high[2][block]);
    const Vector bound = (dx * dx + dy * dy) + dz * dz;
    const Vector sq_dist = S::load(queries.sq_dist);
    const unsigned at_most = S::at_most(bound, sq_dist), ties = at_most & S::at_most(sq_dist, bound);
    return ties == 0 || ties != at_most ? at_most != 0 : may_break_ties(queries, block, ties);
  }

  // How far along an axis, up to the sign, 0 inside.
  static Vector outside(Vector value, T low, T high) {
    const Vector lows = S::broadcast(low), highs = S::broadcast(high);
    const Vector from_low = value > lows ? value : lows;
    return value - (from_low < highs ? from_low : highs);
  }

  void meet(Queries& queries, int64_t block) {
    ++effort;
    const Vector nearest = lowest_of(queries, block);
    const Vector before = S::load(queries.sq_dist);
    const auto closer = nearest < before;
    S::store(queries.sq_dist, closer ? nearest : before);
    const auto here = S::broadcast_index(static_cast<Index>(block)), unknown = S::broadcast_index(kUnknown);
    S::store_index(queries.block, closer ? here : S::load_index(queries.block));
    S::store_index(queries.index, closer ? unknown : S::load_index(queries.index));
    const unsigned ties = S::at_most(nearest, before) & S::at_most(before, nearest);
    if (ties != 0) break_ties(queries, block, ties);
  }

  // Of each query to the points of a block.
  JOINTMAE_NOINLINE Vector lowest_of(const Queries& queries, int64_t block) const {
    const Vector x = S::load(queries.x), y = S::load(queries.y), z = S::load(queries.z);
    Vector nearest = S::broadcast(std::numeric_limits<T>::infinity());
    for (int64_t p = block * kBlockSize; p < (block + 1) * kBlockSize; ++p) {
      const Vector px = S::broadcast(points_.x[p]), py = S::broadcast(points_.y[p]), pz = S::broadcast(points_.z[p]);
      const Vector d = sq_distance<isa>(x, y, z, px, py, pz);
      nearest = d < nearest ? d : nearest;
    }
    return nearest;
  }

  JOINTMAE_NOINLINE bool may_break_ties(Queries& queries, int64_t block, unsigned ties) {
    ++effort;
    const Index* index = points_.index + block * kBlockSize;
    Index lowest = index[0];
    for (int64_t p = 1; p < kBlockSize; ++p) lowest = std::min<Index>(lowest, index[p]);
    for (; ties != 0; ties &= ties - 1) {
      if (lowest < index_of(queries, S::lowest_bit(ties))) return true;
    }
    return false;
  }

  // Queries for which `block` holds points as near as what they have.
  JOINTMAE_NOINLINE void break_ties(Queries& queries, int64_t block, unsigned ties) {
    for (; ties != 0; ties &= ties - 1) {
      const int64_t lane = S::lowest_bit(ties);
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
      for (; found != 0; found &= found - 1) lowest = std::min<Index>(lowest, points_.index[p + S::lowest_bit(found)]);
    }
    return lowest;
  }

  void write(int64_t box) {
    const int64_t begin = box * kBoxSize, count = std::min(kBoxSize, from_.boxes.num_points - begin);
    for (int64_t i = 0; i < count; ++i) {
      Queries& queries = queries_[i / S::kLanes];
      const int64_t query = from_.boxes.index[begin + i];
      sq_dists_[query] = queries.sq_dist[i % S::kLanes];
      indices_[query] = index_of(queries, i % S::kLanes);
    }
  }

  const BoxedCloud<isa, T>&from_, &to_;
  const Boxes<isa, T>& points_;
  T* sq_dists_;
  int64_t* indices_;
  Queries queries_[kVectors];
};

}  // namespace jointmae
