// Where CUDA work goes.
#pragma once

namespace jointmae {

// A device's index and one of its streams: a cudaStream_t, here without CUDA's headers; null is the default stream.
struct Stream {
  int device;
  void* handle;
};

}  // namespace jointmae
