// Asking memory early for what is written late.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "local_aligned_attention/local_aligned_attention.h"
#include "local_aligned_attention/tokens.h"

namespace jointmae {

// Brings the rows that a head will write into the second-level cache, a few between one product and the next: they are
// short and far apart, and if they came all at the end, writing would wait for each.
template <Isa isa>
class Ahead {
 public:
  // The rows of `count` tensors, of so many bytes; numbers have `bytes`.
  void start(const Strided* const* tensors, int64_t count, const Head& head, int64_t bytes, int64_t row_bytes) {
    tensors_ = tensors;
    end_ = tensors + count;
    head_ = head;
    bytes_ = bytes;
    row_bytes_ = row_bytes;
    token_ = 0;
  }

  void step() {
    for (int64_t i = 0; i < kRows && tensors_ != end_; ++i) {
      const Strided& tensor = **tensors_;
      const int64_t at = head_.sample * tensor.b + head_.number * tensor.h + token_ * tensor.l;
      fetch(static_cast<const char*>(tensor.data) + at * bytes_);
      if (++token_ < head_.tokens.L) continue;
      token_ = 0;
      ++tensors_;
    }
  }

 private:
  static constexpr int64_t kRows = 4, kLineBytes = 64;

  void fetch(const char* row) const {
#if defined(__GNUC__)
    for (int64_t byte = 0; byte < row_bytes_; byte += kLineBytes) __builtin_prefetch(row + byte, 0, 2);
#else
    (void)row;
#endif
  }

  const Strided *const *tensors_ = nullptr, *const *end_ = nullptr;
  Head head_{};
  int64_t bytes_ = 0, row_bytes_ = 0, token_ = 0;
};

}  // namespace jointmae
