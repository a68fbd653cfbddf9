// Uninitialised scratch memory for a kernel, aligned for vector loads. Not a std::vector: see isa.h.
#pragma once

#include <cstdint>
#include <new>

#include "common/isa.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace jointmae {

template <Isa isa, typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : size_(sizeof(T) * static_cast<std::size_t>(count)), data_(static_cast<T*>(::operator new(size_, alignment()))) {
#if defined(__linux__)  // a page fault for each 4 KB costs more than what a kernel does with them
    if (size_ >= kHugePage) madvise(data_, size_ / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  }
  ~Scratch() { ::operator delete(data_, alignment()); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* get() { return data_; }
  const T* get() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }

 private:
  static constexpr std::size_t kHugePage = std::size_t{2} << 20;
  std::align_val_t alignment() const { return std::align_val_t{size_ >= kHugePage ? kHugePage : 64}; }

  const std::size_t size_;
  T* const data_;
};

}  // namespace jointmae
