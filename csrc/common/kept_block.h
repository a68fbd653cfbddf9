// Memory for large results, which is kept when a result is given back.
#pragma once

#include <cstdint>

namespace jointmae {

// A block of uninitialised memory. What is large comes fresh from the system each time, and the faults of writing its
// pages first take longer than most kernels here; so when a block is destroyed its memory is kept for the next one of
// about that size. At most kKeptBytes are, those given back last.
class KeptBlock {
 public:
  explicit KeptBlock(int64_t num_bytes);  // throws std::bad_alloc
  ~KeptBlock();
  KeptBlock(const KeptBlock&) = delete;
  KeptBlock& operator=(const KeptBlock&) = delete;

  void* data() const { return data_; }
  int64_t num_bytes() const { return num_bytes_; }

 private:
  int64_t num_bytes_;
  void* data_;
};

inline constexpr int64_t kKeptBytes = int64_t{256} << 20;

// How many bytes are kept and not in use.
int64_t kept_bytes();

}  // namespace jointmae
