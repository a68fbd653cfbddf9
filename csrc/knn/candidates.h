// The candidates of one query: the points so far that may be among its k nearest.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common/isa.h"
#include "common/scratch.h"
#include "common/simd.h"

namespace jointmae::knn {

// How many of values[count] are within the limit. Whole vectors are read; what follows the last value is NaN.
template <Isa isa, typename T>
int64_t count_within(const T* values, int64_t count, T limit) {
  using S = Simd<isa, T>;
  const auto limits = S::broadcast(limit);
  int64_t within = 0;
  for (int64_t i = 0; i < count; i += S::kLanes) within += S::count(S::at_most(S::load(values + i), limits));
  return within;
}

// A limit that at least `k` and, ties apart, not many more of values[count] >= 0 are within, by bisection from `high`,
// which at least k are within.
template <Isa isa, typename T>
T limit_of(const T* values, int64_t count, int64_t k, T high) {
  T low = 0;
  for (int step = 0; step < 24; ++step) {
    const T middle = low + (high - low) / 2;
    if (!(low < middle && middle < high)) break;  // also where high is infinite
    const int64_t within = count_within<isa>(values, count, middle);
    if (within < k) {
      low = middle;
    } else {
      high = middle;
      if (within <= k + k / 8) break;
    }
  }
  return high;
}

// What later points must be within: nearer than `sq_dist`, or as near with an index of at most `last_index`.
template <Isa isa, typename T>
struct Limit {
  T sq_dist;
  typename Simd<isa, T>::Index last_index = std::numeric_limits<typename Simd<isa, T>::Index>::max();
};

template <Isa isa, typename T>
class Candidates {
  using S = Simd<isa, T>;
  using Index = typename S::Index;

 public:
  // Up to `room` points are appended between two looks at `crowded`.
  Candidates(int64_t k, int64_t room)
      : k_(k),
        crowd_(2 * k + kMargin),
        sq_dist_(crowd_ + room + kMargin),
        index_(crowd_ + room + kMargin),
        place_(kRankLimit + kMargin),
        keys_(crowd_ + room) {}

  void clear() { num_ = 0; }

  // Those of the vectors at begin, begin + kLanes, .. below end that are within the limit.
  template <typename SqDistances>
  void append_within(T limit, int64_t begin, int64_t end, const Index* index, SqDistances&& sq_distances_at) {
    const auto limits = S::broadcast(limit);
    T* to = sq_dist_.get();
    Index* to_index = index_.get();
    int64_t num = num_;
    for (int64_t i = begin; i < end; i += S::kLanes) {
      const auto d = sq_distances_at(i);
      num += S::compress(S::at_most(d, limits), d, S::load_index(index + i), to + num, to_index + num);
    }
    num_ = num;
  }

  bool crowded() const { return num_ > crowd_; }

  // Drops candidates until about k are left, exactly k if ties allow no less; returns a limit that at least k are
  // within. All are within `sq_dist`.
  Limit<isa, T> shrink(T sq_dist) {
    pad();
    sq_dist = limit_of<isa>(sq_dist_.get(), num_, k_, sq_dist);
    if (count_within<isa>(sq_dist_.get(), num_, sq_dist) > crowd_ / 2 + k_ / 2) return keep_nearest();
    keep_within(sq_dist);
    return {sq_dist};
  }

  // Drops all but the k nearest, ties by the index; there are at least k.
  Limit<isa, T> keep_nearest() {
    fill_keys();
    std::nth_element(keys_.get(), keys_.get() + (k_ - 1), keys_.get() + num_);
    num_ = k_;
    for (int64_t i = 0; i < k_; ++i) {
      sq_dist_[i] = keys_[i].sq_dist;
      index_[i] = keys_[i].index;
    }
    return {keys_[k_ - 1].sq_dist, keys_[k_ - 1].index};
  }

  // The k nearest, in order; ties by the index. There are at least k.
  void write_nearest(T* sq_dists, int64_t* indices) {
    if (num_ > kRankLimit) {
      sort(sq_dists, indices);
    } else {
      rank();
      write_by_place(sq_dists, indices);
    }
  }

 private:
  static constexpr int64_t kMargin = 32;      // buffers have room for, and are padded to, whole vectors
  static constexpr int64_t kRankLimit = 512;  // more candidates than this are sorted, fewer are ranked by counting
  static constexpr int64_t kUnroll = 4;
  static_assert(2 * S::kLanes <= kMargin);

  struct Key {
    T sq_dist;
    Index index;
    bool operator<(const Key& other) const {
      return sq_dist < other.sq_dist || (sq_dist == other.sq_dist && index < other.index);
    }
  };

  // NaN is within no limit and nearer than nothing.
  void pad() {
    for (int64_t i = num_; i < num_ + std::max(kUnroll, S::kLanes); i += S::kLanes) {
      S::store(sq_dist_.get() + i, S::broadcast(std::numeric_limits<T>::quiet_NaN()));
    }
  }

  void keep_within(T sq_dist) {
    const int64_t num = num_;
    num_ = 0;
    append_within(sq_dist, 0, num, index_.get(), [this](int64_t i) { return S::load(sq_dist_.get() + i); });
  }

  // A candidate's place is the number of nearer ones.
  void rank() {
    pad();
    const T* sq_dist = sq_dist_.get();
    auto sum = S::broadcast_index(0);
    for (int64_t i = 0; i < num_; i += S::kLanes) {
      const auto d = S::load(sq_dist + i);
      auto nearer = S::broadcast_index(0);
      for (int64_t j = 0; j < num_; j += kUnroll) {
        for (int64_t l = j; l < j + kUnroll; ++l) nearer = S::add_where_less(S::broadcast(sq_dist[l]), d, nearer);
      }
      S::store_index(place_.get() + i, nearer);
      sum += nearer;
    }
    if (2 * S::sum(sum) != num_ * (num_ - 1)) rank_ties();
  }

  // Of equals, the one with the lower index comes first.
  void rank_ties() {
    const auto one = S::broadcast_index(1), zero = S::broadcast_index(0);
    for (int64_t i = 0; i < num_; i += S::kLanes) {
      const auto d = S::load(sq_dist_.get() + i);
      const auto index = S::load_index(index_.get() + i);
      auto place = S::load_index(place_.get() + i);
      for (int64_t j = 0; j < num_; ++j) {
        const auto lower = S::broadcast_index(index_[j]) < index ? one : zero;
        place += S::broadcast(sq_dist_[j]) == d ? lower : zero;
      }
      S::store_index(place_.get() + i, place);
    }
  }

  void write_by_place(T* sq_dists, int64_t* indices) {
    for (int64_t i = 0; i < num_; ++i) keys_[place_[i]] = {sq_dist_[i], index_[i]};
    for (int64_t i = 0; i < k_; ++i) {
      sq_dists[i] = keys_[i].sq_dist;
      indices[i] = keys_[i].index;
    }
  }

  void sort(T* sq_dists, int64_t* indices) {
    fill_keys();
    Key* keys = keys_.get();
    if (k_ < num_) std::nth_element(keys, keys + k_, keys + num_);
    std::sort(keys, keys + k_);
    for (int64_t i = 0; i < k_; ++i) {
      sq_dists[i] = keys[i].sq_dist;
      indices[i] = keys[i].index;
    }
  }

  void fill_keys() {
    for (int64_t i = 0; i < num_; ++i) keys_[i] = {sq_dist_[i], index_[i]};
  }

  const int64_t k_, crowd_;
  int64_t num_ = 0;
  Scratch<isa, T> sq_dist_;
  Scratch<isa, Index> index_;
  Scratch<isa, Index> place_;
  Scratch<isa, Key> keys_;
};

}  // namespace jointmae::knn
