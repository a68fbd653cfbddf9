// Uninitialised scratch memory for a kernel, aligned for vector loads. Not a std::vector: see isa.h.
#pragma once

#include <cstdint>
#include <new>

#include "common/isa.h"

namespace jointmae {

template <Isa isa, typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : data_(static_cast<T*>(::operator new(sizeof(T) * static_cast<std::size_t>(count), kAlignment))) {}
  ~Scratch() { ::operator delete(data_, kAlignment); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* get() { return data_; }
  const T* get() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  T* data_;
};

}  // namespace jointmae
