// The CUDA half of the module: as bindings.cpp, with a device and a stream (as an integer) where that has threads. Only
// float32 comes here; what is enqueued is not waited for.
#include "bindings.h"
#include "common/stream.h"

namespace py = pybind11;

namespace jointmae {

void bind_cuda(py::module_& m) { (void)m; }

}  // namespace jointmae
