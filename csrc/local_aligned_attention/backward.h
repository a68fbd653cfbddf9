// The gradients of one head of one sample, tile by tile: queries against keys, each tile computed anew from `lse`.
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

// With weights p = 2^(score - lse): dv = p^T grad, and for ds = p * (grad v^T - delta), where delta is the product of a
// row's gradient with its output: dq = ds k, dk = ds^T q, both times the scale of the scores.
template <Isa isa, typename E>
class Backward {
 public:
  Backward(const Strided& grad, const Strided& q, const Strided& k, const Strided& v, const Strided& out,
           const float* lse, const Strided& dq, const Strided& dk, const Strided& dv, const AttentionSpec& spec)
      : grad_(grad),
        q_(q),
        k_(k),
        v_(v),
        out_(out),
        lse_(lse),
        dq_(dq),
        dk_(dk),
        dv_(dv),
        spec_(spec),
        width_(V::round_up(spec.d)),
        key_panels_(panels_size<isa>(spec.L, spec.d)),
        value_panels_(panels_size<isa>(spec.L, spec.d)),
        keys_(spec.L * width_),
        values_(spec.L * width_),
        queries_((spec.L + kLanes) * width_),
        grads_((spec.L + kLanes) * width_),
        sums_(3 * spec.L * width_),
        rows_(2 * spec.L + kLanes),
        weights_(kBlock * kBlock),
        grad_scores_(kBlock * kBlock) {}

  void run(const Head& head) {
    head_ = head;
    ahead_.start(written_, 3, head, sizeof(E), spec_.d * sizeof(E));
    pack();
    for (int64_t m = 0; m < 2; ++m) add_blocks(m, m);  // also the first of every sum
    for (int64_t m = 0; m < 2; ++m) add_others(m);
    const KeyRange all{0, spec_.L};
    const float scale = score_scale<isa>(spec_.d) * kLn2;
    unpack_rows<isa, E>(sum_q(), all, spec_.d, scale, dq_, head_);
    unpack_rows<isa, E>(sum_k(), all, spec_.d, kLn2, dk_, head_);  // the queries are scaled
    unpack_rows<isa, E>(sum_v(), all, spec_.d, 1.0f, dv_, head_);
  }

 private:
  using V = Simd<isa, float>;
  using Vector = typename V::Vector;
  static constexpr int64_t kLanes = V::kLanes, kWidth = Tile<isa>::kWidth;
  static constexpr int64_t kBlock = 64;  // queries, and keys, of a tile that stays in the first-level cache
  static constexpr float kLn2 = 0.693147181f;

  float* sum_q() { return sums_.get(); }
  float* sum_k() { return sums_.get() + spec_.L * width_; }
  float* sum_v() { return sums_.get() + 2 * spec_.L * width_; }
  float* lse_at(int64_t place) { return rows_.get() + place; }
  float* delta_at(int64_t place) { return rows_.get() + spec_.L + place; }  // with room for a vector

  void pack() {
    const KeyRange all{0, spec_.L};
    pack_rows<isa, E>(k_, head_, all, spec_.d, 1.0f, keys_.get());
    pack_rows<isa, E>(v_, head_, all, spec_.d, 1.0f, values_.get());
    pack_panels<isa>(keys_.get(), head_.tokens, spec_.d, key_panels_.get());
    pack_panels<isa>(values_.get(), head_.tokens, spec_.d, value_panels_.get());
    pack_rows<isa, E>(q_, head_, all, spec_.d, score_scale<isa>(spec_.d), queries_.get());
    pack_rows<isa, E>(grad_, head_, all, spec_.d, 1.0f, grads_.get());
    const float* lse = lse_ + (head_.sample * spec_.h + head_.number) * spec_.L;
    for (int64_t place = 0; place < spec_.L; ++place) *lse_at(place) = lse[token_at<isa>(head_.tokens, place)];
    for (int64_t place = 0; place < spec_.L; place += kLanes) pack_deltas(place);
  }

  // Of the gradients and outputs of up to kLanes tokens.
  void pack_deltas(int64_t place) {
    Vector sums[kLanes] = {};
    for (int64_t i = 0; i < kLanes && place + i < spec_.L; ++i) {
      const E* out = row_at<isa, E>(out_, head_, place + i);
      sums[i] = product(grads_.get() + (place + i) * width_, out);
    }
    V::store(delta_at(place), sums_of_rows<isa>(sums));
  }

  Vector product(const float* grad, const E* out) const {
    Vector sum{};
    int64_t c = 0;
    for (; c + kLanes <= spec_.d; c += kLanes) sum = V::fma(V::load(grad + c), load_wide<isa>(out + c), sum);
    if (c == spec_.d) return sum;
    float rest[kLanes];
    pack_row<isa>(out + c, spec_.d - c, 1.0f, rest);
    return V::fma(V::load(grad + c), V::load(rest), sum);
  }

  // All queries of modality m against all keys of modality n.
  void add_blocks(int64_t m, int64_t n) {
    const KeyRange queries{0, head_.tokens.modalities[m].count}, keys{0, head_.tokens.modalities[n].count};
    const int64_t parts = ceil_div<isa>(queries.end, kBlock);
    for (int64_t k = 0; k < keys.end; k += kBlock) {  // outside, since more matrices have the rows of keys
      const KeyRange some{k, keys.end - k < kBlock ? keys.end : k + kBlock};
      for (int64_t i = 0; i < parts; ++i) {
        add_tile(m, part_of<isa>(queries, i, parts), n, some, false, m != n || k > 0, m != n || i > 0);
      }
    }
  }

  // The queries of modality m against the keys of the other one.
  void add_others(int64_t m) {
    const Modality& own = head_.tokens.modalities[m];
    if (own.reads_all) {
      add_blocks(m, 1 - m);
    } else if (pairs_of<isa>(head_.tokens, m, {0, own.count}) <= kFewPairs * own.count) {
      add_pairs(m);
    } else {
      add_groups(m);
    }
  }

  // A few queries at a time: neighbours read the same keys.
  void add_groups(int64_t m) {
    const KeyRange queries{0, head_.tokens.modalities[m].count};
    const int64_t parts = ceil_div<isa>(queries.end, Tile<isa>::kRows);
    for (int64_t i = 0; i < parts; ++i) {
      const KeyRange some = part_of<isa>(queries, i, parts), keys = read_by_any<isa>(head_.tokens, m, some);
      for (int64_t k = keys.begin; k < keys.end;) {
        const int64_t next = k / kLanes * kLanes + kBlock, end = next < keys.end ? next : keys.end;
        add_tile(m, some, 1 - m, {k, end}, true, true, true);
        k = end;
      }
    }
  }

  void add_pairs(int64_t m) {
    const Modality &own = head_.tokens.modalities[m], &other = head_.tokens.modalities[1 - m];
    Pair pairs[kLanes];
    int64_t count = 0;
    for (int64_t query = 0; query < own.count; ++query) {
      const KeyRange keys = read_by<isa>(head_.tokens, m, query);
      for (int64_t key = keys.begin; key < keys.end; ++key) {
        pairs[count++] = {own.start + query, other.start + key};
        if (count == kLanes) add_some_pairs(pairs, count);
        count %= kLanes;
      }
    }
    if (count > 0) add_some_pairs(pairs, count);
  }

  void add_some_pairs(const Pair* pairs, int64_t count) {
    float lse[kLanes] = {}, delta[kLanes] = {}, weights[kLanes], grads[kLanes];
    for (int64_t i = 0; i < count; ++i) {
      lse[i] = *lse_at(pairs[i].query);
      delta[i] = *delta_at(pairs[i].query);
    }
    const Vector scores = products_of<isa>(pairs, count, queries_.get(), keys_.get(), width_);
    const Vector grad_weights = products_of<isa>(pairs, count, grads_.get(), values_.get(), width_);
    const Vector weight = exp2_negative<isa>(scores - V::load(lse));
    V::store(weights, weight);
    V::store(grads, weight * (grad_weights - V::load(delta)));
    for (int64_t i = 0; i < count; ++i) {
      const int64_t query = pairs[i].query * width_, key = pairs[i].key * width_;
      add_row<isa>(keys_.get() + key, grads[i], width_, sum_q() + query);
      add_row<isa>(queries_.get() + query, grads[i], width_, sum_k() + key);
      add_row<isa>(grads_.get() + query, weights[i], width_, sum_v() + key);
    }
  }

  // `add_q`, `add_kv`: not the first to these sums.
  void add_tile(int64_t m, const KeyRange& queries, int64_t n, const KeyRange& keys, bool masked, bool add_q,
                bool add_kv) {
    const Modality& other = head_.tokens.modalities[n];
    const int64_t row = head_.tokens.modalities[m].start + queries.begin, rows = queries.end - queries.begin;
    const int64_t whole = keys.end == other.count && !masked ? in_vectors<isa>(keys.end) : keys.end;
    const KeyRange vectors = vectors_of<isa>(keys);
    score(n, {keys.begin, whole}, queries_.get() + row * width_, rows, key_panels_.get(), weights_.get());
    score(n, {keys.begin, whole}, grads_.get() + row * width_, rows, value_panels_.get(), grad_scores_.get());
    for (int64_t key = whole; key < keys.end; ++key) {
      const int64_t at = (other.start + key) * width_, column = key - keys.begin;
      score_key(queries_.get() + row * width_, rows, keys_.get() + at, weights_.get() + column);
      score_key(grads_.get() + row * width_, rows, values_.get() + at, grad_scores_.get() + column);
    }
    for (int64_t i = 0; i < rows; ++i) {
      const KeyRange range = masked ? read_by<isa>(head_.tokens, m, queries.begin + i) : keys;
      differentiate(i, row + i, vectors, range, masked);
    }
    add_products(row, rows, other.start + keys.begin, keys.end - keys.begin, keys.begin - vectors.begin * kLanes, add_q,
                 add_kv);
  }

  // The products of rows of a with the panels of modality n that hold `keys`.
  void score(int64_t n, const KeyRange& keys, const float* a, int64_t rows, const float* panels, float* to) {
    const KeyRange vectors = vectors_of<isa>(keys);
    multiply<isa>({a, width_, 1}, {panels + panels_begin<isa>(head_.tokens, n, spec_.d), kWidth * spec_.d, kWidth}, to,
                  kBlock, rows, vectors.begin, vectors.end - vectors.begin, spec_.d, false, ahead_);
  }

  // The products of rows of a with the row b, into a column.
  void score_key(const float* a, int64_t rows, const float* b, float* to) const {
    for (int64_t row = 0; row < rows; row += kLanes) {
      float lanes[kLanes];
      V::store(lanes, products_of_rows<isa>(a + row * width_, b, width_));
      for (int64_t i = 0; i < kLanes && row + i < rows; ++i) to[(row + i) * kBlock] = lanes[i];
    }
  }

  // Row i of a tile: scores become weights, gradients of weights those of scores; 0 outside of `range`.
  void differentiate(int64_t i, int64_t place, const KeyRange& vectors, const KeyRange& range, bool masked) {
    const Vector lse = V::broadcast(*lse_at(place)), delta = V::broadcast(*delta_at(place));
    float *weights = weights_.get() + i * kBlock, *grads = grad_scores_.get() + i * kBlock;
    for (int64_t v = vectors.begin; v < vectors.end; ++v, weights += kLanes, grads += kLanes) {
      Vector weight = exp2_negative<isa>(V::load(weights) - lse);
      Vector grad = weight * (V::load(grads) - delta);
      if (masked) {
        const auto none = outside<isa>(v * kLanes, range);
        weight = none ? Vector{} : weight;
        grad = none ? Vector{} : grad;
      }
      V::store(weights, weight);
      V::store(grads, grad);
    }
  }

  // What a tile of rows `row`.. and keys `key`.. adds; its first key is in column `at`.
  void add_products(int64_t row, int64_t rows, int64_t key, int64_t keys, int64_t at, bool add_q, bool add_kv) {
    const float *weights = weights_.get() + at, *grads = grad_scores_.get() + at;
    const int64_t vectors = width_ / kLanes;
    multiply<isa>({grads, kBlock, 1}, {keys_.get() + key * width_, kWidth, width_}, sum_q() + row * width_, width_,
                  rows, 0, vectors, keys, add_q, ahead_);
    multiply<isa>({grads, 1, kBlock}, {queries_.get() + row * width_, kWidth, width_}, sum_k() + key * width_, width_,
                  keys, 0, vectors, rows, add_kv, ahead_);
    multiply<isa>({weights, 1, kBlock}, {grads_.get() + row * width_, kWidth, width_}, sum_v() + key * width_, width_,
                  keys, 0, vectors, rows, add_kv, ahead_);
  }

  const Strided &grad_, &q_, &k_, &v_, &out_;
  const float* lse_;
  const Strided &dq_, &dk_, &dv_;
  const AttentionSpec& spec_;
  const int64_t width_;  // of a row of channels
  const Strided* written_[3] = {&dq_, &dk_, &dv_};
  Ahead<isa> ahead_;
  Head head_{};
  Scratch<isa, float> key_panels_, value_panels_, keys_, values_, queries_, grads_, sums_, rows_, weights_,
      grad_scores_;
};

}  // namespace jointmae
