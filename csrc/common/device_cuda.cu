#include <cuda_runtime.h>

#include "common/device.h"

namespace jointmae {

// cudart is linked statically, so its version is the toolkit's; the driver's is the highest toolkit that it can serve.
bool cuda_driver_serves_toolkit() {
  int driver = 0;
  int runtime = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || cudaRuntimeGetVersion(&runtime) != cudaSuccess) return false;
  return driver / 1000 >= runtime / 1000;
}

}  // namespace jointmae
