// Uninitialised scratch memory for a kernel, aligned for vector loads. Not a std::vector: see isa.h.
#pragma once

#include <cstdint>
#include <new>

#include "common/huge_pages.h"
#include "common/isa.h"

namespace jointmae {

template <Isa isa, typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : size_(sizeof(T) * static_cast<std::size_t>(count)), data_(static_cast<T*>(::operator new(size_, alignment()))) {
    ask_for_huge_pages(data_, static_cast<int64_t>(size_));
  }
  ~Scratch() { ::operator delete(data_, alignment()); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* get() { return data_; }
  const T* get() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }

 private:
  std::align_val_t alignment() const {
    return std::align_val_t{size_ < static_cast<std::size_t>(kHugeFrom) ? 64u : 2u << 20};
  }

  const std::size_t size_;
  T* const data_;
};

}  // namespace jointmae
