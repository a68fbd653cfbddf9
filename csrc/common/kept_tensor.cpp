#include "common/kept_tensor.h"

#include <memory>
#include <new>

#include "common/kept_memory.h"

namespace jointmae {
namespace {

struct KeptTensor {
  KeptTensor(const int64_t* shape, int32_t num_dims, DLDataType dtype) : sizes(new int64_t[2 * num_dims]) {
    int64_t *const strides = sizes.get() + num_dims, num_elements = 1;
    for (int32_t i = num_dims - 1; i >= 0; --i) {
      sizes[i] = shape[i];
      strides[i] = num_elements;
      if (shape[i] < 1 || num_elements > INT64_MAX / 16 / shape[i]) throw std::bad_alloc();
      num_elements *= shape[i];
    }
    num_bytes = num_elements * (dtype.bits / 8);
    void* data = take_memory(num_bytes);
    managed.dl_tensor = {data, {1, 0}, num_dims, dtype, sizes.get(), strides, 0};
    managed.manager_ctx = this;
    managed.deleter = [](DLManagedTensor* self) { delete static_cast<KeptTensor*>(self->manager_ctx); };
  }
  ~KeptTensor() { give_back_memory(managed.dl_tensor.data, num_bytes); }
  KeptTensor(const KeptTensor&) = delete;
  KeptTensor& operator=(const KeptTensor&) = delete;

  DLManagedTensor managed{};
  int64_t num_bytes = 0;
  std::unique_ptr<int64_t[]> sizes;  // shape, strides
};

}  // namespace

DLManagedTensor* new_kept_tensor(const int64_t* shape, int32_t num_dims, DLDataType dtype) {
  return &(new KeptTensor(shape, num_dims, dtype))->managed;
}

}  // namespace jointmae
