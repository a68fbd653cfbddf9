// A cloud in boxes, with the corners of parts of them that are as small as a vector.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common/boxes.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "common/simd.h"

namespace jointmae {

inline constexpr int64_t kBlockSize = 16;  // points that are met together
inline constexpr int64_t kBlocksInBox = kBoxSize / kBlockSize;

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
        const int64_t several = std::min(S::kLanes, end - block);
        bound(boxes.x, block, several, blocks.low[0], blocks.high[0]);
        bound(boxes.y, block, several, blocks.low[1], blocks.high[1]);
        bound(boxes.z, block, several, blocks.low[2], blocks.high[2]);
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

}  // namespace jointmae
