// Where CUDA work goes.
#pragma once

namespace jointmae {

// The current device's index and one of its streams: a cudaStream_t, here without CUDA's headers; null is the default
// stream. The caller (jointmae/ops/registry.py) has made the tensors' device the current one.
struct Stream {
  int device;
  void* handle;
};

}  // namespace jointmae
