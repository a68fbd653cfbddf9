// Attention of one head of one sample: block of queries by block, all scores, then what they weigh.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "local_aligned_attention/exponential.h"
#include "local_aligned_attention/local_aligned_attention.h"
#include "local_aligned_attention/multiply.h"
#include "local_aligned_attention/pack.h"
#include "local_aligned_attention/pairs.h"
#include "local_aligned_attention/scores.h"
#include "local_aligned_attention/tokens.h"

namespace jointmae {

// Keys lie transposed in panels, beside that all matrices in rows, in the order of the tokens' places: the keys of a
// cell are neighbours. A row of scores holds those of the own modality and behind them those of the other one. If these
// are few, they are single products, for each row its own. Else they are whole vectors, from a multiple of kLanes on,
// of all that any of a group of queries reads, with -inf for what the others read. Rows end with -inf, up to a whole
// vector.
template <Isa isa, typename E>
class Forward {
 public:
  Forward(const Strided& q, const Strided& k, const Strided& v, const Strided& out, float* lse,
          const AttentionSpec& spec)
      : q_(q),
        k_(k),
        v_(v),
        out_(out),
        lse_(lse),
        spec_(spec),
        width_(V::round_up(spec.d)),
        row_(((ceil_div<isa>(spec.L, kLanes) + 3) / 2 * 2 + 1) * kLanes),
        limit_(rows_of_a_block(row_)),
        panels_(panels_size<isa>(spec.L, spec.d)),
        keys_(spec.L * width_),
        values_(spec.L * width_),
        queries_((limit_ + kLanes) * width_),
        scores_(limit_ * row_),
        sums_(limit_ * width_) {}

  void run(const Head& head) {
    head_ = head;
    ahead_.start(written_, 1, head, sizeof(E), spec_.d * sizeof(E));
    pack_rows<isa, E>(k_, head, {0, spec_.L}, spec_.d, 1.0f, keys_.get());
    pack_rows<isa, E>(v_, head, {0, spec_.L}, spec_.d, 1.0f, values_.get());
    pack_panels<isa>(keys_.get(), head.tokens, spec_.d, panels_.get());
    for (int64_t m = 0; m < 2; ++m) {
      const KeyRange all{0, head.tokens.modalities[m].count};
      const int64_t blocks = ceil_div<isa>(all.end, limit_);
      for (int64_t i = 0; i < blocks; ++i) attend(m, part_of<isa>(all, i, blocks));
    }
  }

 private:
  using V = Simd<isa, float>;
  using Vector = typename V::Vector;
  static constexpr int64_t kLanes = V::kLanes, kWidth = Tile<isa>::kWidth, kRows = Tile<isa>::kRows;
  static constexpr int64_t kBlock = 64;  // rows of queries or values that stay in the first-level cache

  // Queries whose scores stay in the second-level cache.
  static int64_t rows_of_a_block(int64_t row) {
    const int64_t fit = (int64_t{1} << 17) / row;
    return fit < kRows ? kRows : fit < kBlock ? fit : kBlock;
  }

  // `queries` are places of modality m.
  void attend(int64_t m, const KeyRange& queries) {
    const int64_t start = head_.tokens.modalities[m].start + queries.begin, rows = queries.end - queries.begin;
    const bool few = pairs_of<isa>(head_.tokens, m, queries) <= kFewPairs * rows;
    pack_rows<isa, E>(q_, head_, {start, start + rows}, spec_.d, score_scale<isa>(spec_.d), queries_.get());
    score_own(m, rows);
    few ? score_pairs(m, queries) : score_groups(m, queries);
    for (int64_t i = 0; i < rows; i += kLanes) exponentiate(i, rows - i < kLanes ? rows - i : kLanes, start);
    weigh(m, {0, head_.tokens.modalities[m].count}, {0, rows}, 0, false);
    few ? weigh_pairs(m, queries) : weigh_groups(m, queries);
    for (int64_t i = 0; i < rows; ++i) {
      unpack_row<isa>(sums_.get() + i * width_, spec_.d, scale_[i], row_at<isa, E>(out_, head_, start + i));
    }
  }

  void score_own(int64_t m, int64_t rows) {
    const Modality& own = head_.tokens.modalities[m];
    const int64_t whole = in_vectors<isa>(own.count), last = (own.count - 1) / kLanes * kLanes;
    score(m, {0, whole}, {0, rows}, 0);
    for (int64_t row = 0; row < rows; ++row) {
      columns_[row] = last + kLanes;
      if (columns_[row] > whole) keep<isa>({0, whole}, last, 1, scores_.get() + row * row_ + last);
    }
    for (int64_t key = whole; key < own.count; ++key) score_key(own.start + key, rows, key);
  }

  // The scores of all rows for the key at a place, into a column.
  void score_key(int64_t place, int64_t rows, int64_t column) {
    for (int64_t row = 0; row < rows; row += kLanes) {
      float lanes[kLanes];
      V::store(lanes, products_of_rows<isa>(queries_.get() + row * width_, keys_.get() + place * width_, width_));
      for (int64_t i = 0; i < kLanes && row + i < rows; ++i) scores_[(row + i) * row_ + column] = lanes[i];
    }
  }

  void score_pairs(int64_t m, const KeyRange& queries) {
    const int64_t own = head_.tokens.modalities[m].count, other = head_.tokens.modalities[1 - m].start;
    for (int64_t row = 0; row < queries.end - queries.begin; ++row) {
      const KeyRange keys = read_by<isa>(head_.tokens, m, queries.begin + row);
      const int64_t end = own + keys.end - keys.begin;
      for (; columns_[row] < end; columns_[row] += kLanes) {
        V::store(scores_.get() + row * row_ + columns_[row], V::broadcast(-INFINITY));
      }
      for (int64_t key = keys.begin; key < keys.end; ++key) add_pair(row, other + key, own + key - keys.begin);
    }
    finish_pairs();
  }

  void add_pair(int64_t row, int64_t place, int64_t column) {
    pairs_[num_pairs_] = {row, place};
    pair_columns_[num_pairs_++] = column;
    if (num_pairs_ == kLanes) finish_pairs();
  }

  void finish_pairs() {
    if (num_pairs_ == 0) return;
    float lanes[kLanes];
    V::store(lanes, products_of<isa>(pairs_, num_pairs_, queries_.get(), keys_.get(), width_));
    for (int64_t i = 0; i < num_pairs_; ++i) scores_[pairs_[i].query * row_ + pair_columns_[i]] = lanes[i];
    num_pairs_ = 0;
  }

  void weigh_pairs(int64_t m, const KeyRange& queries) {
    const int64_t own = head_.tokens.modalities[m].count, other = head_.tokens.modalities[1 - m].start;
    for (int64_t row = 0; row < queries.end - queries.begin; ++row) {
      const KeyRange keys = read_by<isa>(head_.tokens, m, queries.begin + row);
      const float* weights = scores_.get() + row * row_ + own - keys.begin;
      for (int64_t key = keys.begin; key < keys.end; ++key) {
        add_row<isa>(values_.get() + (other + key) * width_, weights[key], width_, sums_.get() + row * width_);
      }
    }
  }

  // The scores of `rows` of the block for the vectors that hold `keys` of modality m, written from column `at` on.
  void score(int64_t m, const KeyRange& keys, const KeyRange& rows, int64_t at) {
    const KeyRange vectors = vectors_of<isa>(keys);
    const float* panels = panels_.get() + panels_begin<isa>(head_.tokens, m, spec_.d);
    multiply<isa>({queries_.get() + rows.begin * width_, width_, 1}, {panels, kWidth * spec_.d, kWidth},
                  scores_.get() + rows.begin * row_ + at, row_, rows.end - rows.begin, vectors.begin,
                  vectors.end - vectors.begin, spec_.d, false, ahead_);
  }

  // Part i of the queries, as rows of the block: neighbours, that read the same keys.
  KeyRange group_of(int64_t m, const KeyRange& queries, int64_t i) const {
    const KeyRange rows{0, queries.end - queries.begin};
    return part_of<isa>(rows, i, groups_of(m, queries));
  }

  int64_t groups_of(int64_t m, const KeyRange& queries) const {
    return head_.tokens.modalities[m].reads_all ? 1 : ceil_div<isa>(queries.end - queries.begin, kRows);
  }

  KeyRange others_of(int64_t m, const KeyRange& queries, const KeyRange& rows) const {
    return read_by_any<isa>(head_.tokens, m, {queries.begin + rows.begin, queries.begin + rows.end});
  }

  void score_groups(int64_t m, const KeyRange& queries) {
    const int64_t at = V::round_up(head_.tokens.modalities[m].count);
    for (int64_t i = 0; i < groups_of(m, queries); ++i) {
      const KeyRange rows = group_of(m, queries, i), keys = others_of(m, queries, rows),
                     vectors = vectors_of<isa>(keys);
      if (keys.begin == keys.end) continue;
      score(1 - m, keys, rows, at);
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        keep<isa>(read_by<isa>(head_.tokens, m, queries.begin + row), vectors.begin * kLanes,
                  vectors.end - vectors.begin, scores_.get() + row * row_ + at);
        columns_[row] = at + (vectors.end - vectors.begin) * kLanes;
      }
    }
  }

  void weigh_groups(int64_t m, const KeyRange& queries) {
    const int64_t at = V::round_up(head_.tokens.modalities[m].count);
    for (int64_t i = 0; i < groups_of(m, queries); ++i) {
      const KeyRange rows = group_of(m, queries, i), keys = others_of(m, queries, rows);
      weigh(1 - m, keys, rows, at + keys.begin % kLanes, true);
    }
  }

  // Scores of `count` rows, at most kLanes, become their exponentials, relative to the row's highest.
  void exponentiate(int64_t row, int64_t count, int64_t place) {
    Vector highest[kLanes] = {}, total[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) highest[i] = highest_of(row + i);
    V::transpose(highest);
    for (int64_t i = 1; i < kLanes; ++i) highest[0] = V::larger(highest[0], highest[i]);
    float lanes[kLanes];
    V::store(lanes, highest[0]);
    for (int64_t i = 0; i < count; ++i) total[i] = exponentials_of(row + i, V::broadcast(lanes[i]));
    const Vector sums = sums_of_rows<isa>(total);
    V::store(scale_ + row, 1.0f / sums);
    V::store(lanes, highest[0] + log2_positive<isa>(sums));
    float* lse = lse_ + (head_.sample * spec_.h + head_.number) * spec_.L;
    for (int64_t i = 0; i < count; ++i) lse[token_at<isa>(head_.tokens, place + row + i)] = lanes[i];
  }

  Vector highest_of(int64_t row) const {
    const float* scores = scores_.get() + row * row_;
    Vector highest = V::load(scores);
    for (int64_t c = kLanes; c < columns_[row]; c += kLanes) {
      const Vector next = V::load(scores + c);
      highest = V::larger(next, highest);
    }
    return highest;
  }

  Vector exponentials_of(int64_t row, Vector highest) {
    float* scores = scores_.get() + row * row_;
    Vector total{};
    for (int64_t c = 0; c < columns_[row]; c += kLanes) {
      const Vector weights = exp2_negative<isa>(V::load(scores + c) - highest);
      V::store(scores + c, weights);
      total += weights;
    }
    return total;
  }

  // The sums of the values of `keys` of modality m, weighed by columns `at`.. of `rows`; from none, or added.
  void weigh(int64_t m, const KeyRange& keys, const KeyRange& rows, int64_t at, bool add) {
    const float* values = values_.get() + (head_.tokens.modalities[m].start + keys.begin) * width_;
    for (int64_t k = 0, count = keys.end - keys.begin; k < count; k += kBlock) {
      multiply<isa>({scores_.get() + rows.begin * row_ + at + k, row_, 1}, {values + k * width_, kWidth, width_},
                    sums_.get() + rows.begin * width_, width_, rows.end - rows.begin, 0, width_ / kLanes,
                    count - k < kBlock ? count - k : kBlock, add || k > 0, ahead_);
    }
  }

  const Strided &q_, &k_, &v_, &out_;
  float* lse_;
  const AttentionSpec& spec_;
  const int64_t width_;  // of a row of channels
  const int64_t row_;    // the distance of rows of scores: an odd number of vectors spreads them over the cache
  const int64_t limit_;  // queries in a block
  const Strided* written_[1] = {&out_};
  Ahead<isa> ahead_;
  Head head_{};
  Scratch<isa, float> panels_, keys_, values_, queries_, scores_, sums_;
  int64_t columns_[kBlock];       // of each row of scores
  float scale_[kBlock + kLanes];  // 1 / the sum of each row of weights
  Pair pairs_[kLanes];            // with rows of the block as queries
  int64_t pair_columns_[kLanes];  // where their scores go
  int64_t num_pairs_ = 0;
};

}  // namespace jointmae
