// The CUDA half of the module: as bindings.cpp, with a device and a stream (as an integer) where that has threads. Only
// float32 comes here; what is enqueued is not waited for.
#include "bindings.h"
#include "common/stream.h"
#include "farthest_point_sample/farthest_point_sample.h"
#include "project_points/project_points.h"

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
  m.def(
      "project_points_workspace_cuda",
      [](const ProjectSpec& spec, int path, int device, Address stream) {
        return project_points_workspace_cuda(spec, path, {device, pointer<void>(stream)});
      },
      py::arg("spec"), py::arg("path"), py::arg("device"), py::arg("stream"));
  m.def(
      "project_points_cuda",
      [](Address points, Address world_to_cam, Address intrinsics, Address depth, Address index, Address coverage,
         Address pixels, Address dropped, Address weight_sum, Address workspace, const ProjectSpec& spec, int path,
         int device, Address stream) {
        project_points_cuda(pointer<const float>(points), pointer<const float>(world_to_cam),
                            pointer<const float>(intrinsics), pointer<float>(depth), pointer<int32_t>(index),
                            pointer<float>(coverage), pointer<int32_t>(pixels), pointer<int64_t>(dropped),
                            pointer<float>(weight_sum), pointer<void>(workspace), spec, path,
                            {device, pointer<void>(stream)});
      },
      py::arg("points"), py::arg("world_to_cam"), py::arg("intrinsics"), py::arg("depth"), py::arg("index"),
      py::arg("coverage"), py::arg("pixels"), py::arg("dropped"), py::arg("weight_sum"), py::arg("workspace"),
      py::arg("spec"), py::arg("path"), py::arg("device"), py::arg("stream"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "project_points_backward_cuda",
      [](Address grad_depth, Address grad_coverage, Address points, Address world_to_cam, Address intrinsics,
         Address depth, Address index, Address weight_sum, Address grad_points, const ProjectSpec& spec, int device,
         Address stream) {
        project_points_backward_cuda(pointer<const float>(grad_depth), pointer<const float>(grad_coverage),
                                     pointer<const float>(points), pointer<const float>(world_to_cam),
                                     pointer<const float>(intrinsics), pointer<const float>(depth),
                                     pointer<const int32_t>(index), pointer<const float>(weight_sum),
                                     pointer<float>(grad_points), spec, {device, pointer<void>(stream)});
      },
      py::arg("grad_depth"), py::arg("grad_coverage"), py::arg("points"), py::arg("world_to_cam"),
      py::arg("intrinsics"), py::arg("depth"), py::arg("index"), py::arg("weight_sum"), py::arg("grad_points"),
      py::arg("spec"), py::arg("device"), py::arg("stream"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace jointmae
