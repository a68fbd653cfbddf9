// The binary interface by which a new tensor is handed to Python: the part of DLPack (github.com/dmlc/dlpack, as a
// capsule named "dltensor" holds it) that a tensor on the CPU needs. Names and order are DLPack's.
#pragma once

#include <cstdint>

namespace jointmae {

struct DLDevice {
  int32_t device_type;  // 1 is the CPU
  int32_t device_id;
};

struct DLDataType {
  uint8_t code;  // 0 signed integer, 2 floating point, 4 bfloat
  uint8_t bits;
  uint16_t lanes;
};

struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

struct DLManagedTensor {
  DLTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(DLManagedTensor* self);
};

}  // namespace jointmae
