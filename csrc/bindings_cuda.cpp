// The CUDA half of the module: as bindings.cpp, with a device and a stream (as an integer) where that has threads. Only
// float32 comes here; what is enqueued is not waited for.
#include "bindings.h"
#include "common/stream.h"
#include "farthest_point_sample/farthest_point_sample.h"

namespace py = pybind11;

namespace jointmae {

void bind_cuda(py::module_& m) {
  m.def("farthest_point_sample_workspace_cuda", &farthest_point_sample_workspace_cuda, py::arg("N"), py::arg("path"));
  m.def(
      "farthest_point_sample_cuda",
      [](Address points, Address lengths, Address indices, Address workspace, int64_t B, int64_t N, int64_t M,
         int64_t start, int path, int device, Address stream) {
        farthest_point_sample_cuda(pointer<const float>(points), pointer<const int64_t>(lengths),
                                   pointer<int64_t>(indices), pointer<void>(workspace), B, N, M, start, path,
                                   {device, pointer<void>(stream)});
      },
      py::arg("points"), py::arg("lengths"), py::arg("indices"), py::arg("workspace"), py::arg("B"), py::arg("N"),
      py::arg("M"), py::arg("start"), py::arg("path"), py::arg("device"), py::arg("stream"),
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace jointmae
