// The CUDA half of the module: as bindings.cpp, with a device and a stream (as an integer) where that has threads.
// Points are float32 here; what is enqueued is not waited for.
#include "bindings.h"
#include "chamfer_distance/chamfer_distance.h"
#include "common/inverse_index.h"
#include "common/stream.h"
#include "farthest_point_sample/farthest_point_sample.h"
#include "group/group.h"
#include "knn/knn.h"
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

  m.def("inverse_index_size", &inverse_index_size, py::arg("B"), py::arg("R"), py::arg("N"));

  m.def(
      "group_cuda",
      [](Address features, Address indices, Address out, int64_t B, int64_t N, int64_t R, int64_t row_bytes, int device,
         Address stream) {
        group_cuda(pointer<const void>(features), pointer<const int64_t>(indices), pointer<void>(out), B, N, R,
                   row_bytes, Stream{device, pointer<void>(stream)});
      },
      py::arg("features"), py::arg("indices"), py::arg("out"), py::arg("B"), py::arg("N"), py::arg("R"),
      py::arg("row_bytes"), py::arg("device"), py::arg("stream"), py::call_guard<py::gil_scoped_release>());

  m.def(
      "group_backward_cuda",
      [](Address grad, Address indices, Address workspace, Address grad_features, int64_t B, int64_t N, int64_t R,
         int64_t C, int type, int device, Address stream) {
        group_backward_cuda(pointer<const void>(grad), pointer<const int64_t>(indices), pointer<int32_t>(workspace),
                            pointer<void>(grad_features), B, N, R, C, static_cast<GradType>(type),
                            Stream{device, pointer<void>(stream)});
      },
      py::arg("grad"), py::arg("indices"), py::arg("workspace"), py::arg("grad_features"), py::arg("B"), py::arg("N"),
      py::arg("R"), py::arg("C"), py::arg("type"), py::arg("device"), py::arg("stream"),
      py::call_guard<py::gil_scoped_release>());

  m.def(
      "chamfer_distance_keys",
      [](int64_t B, int64_t N, int64_t M, int path) {
        return chamfer_distance_keys(B, N, M, static_cast<ChamferPath>(path));
      },
      py::arg("B"), py::arg("N"), py::arg("M"), py::arg("path"));

  m.def(
      "chamfer_distance_cuda",
      [](Address x, Address y, Address lengths_x, Address lengths_y, Address d_xy, Address d_yx, Address index_xy,
         Address index_yx, Address keys, int64_t B, int64_t N, int64_t M, int path, int device, Address stream) {
        chamfer_distance_cuda(pointer<const float>(x), pointer<const float>(y), pointer<const int64_t>(lengths_x),
                              pointer<const int64_t>(lengths_y), pointer<float>(d_xy), pointer<float>(d_yx),
                              pointer<int64_t>(index_xy), pointer<int64_t>(index_yx), pointer<unsigned long long>(keys),
                              B, N, M, static_cast<ChamferPath>(path), Stream{device, pointer<void>(stream)});
      },
      py::arg("x"), py::arg("y"), py::arg("lengths_x"), py::arg("lengths_y"), py::arg("d_xy"), py::arg("d_yx"),
      py::arg("index_xy"), py::arg("index_yx"), py::arg("keys"), py::arg("B"), py::arg("N"), py::arg("M"),
      py::arg("path"), py::arg("device"), py::arg("stream"), py::call_guard<py::gil_scoped_release>());

  m.def(
      "chamfer_distance_backward_workspace",
      [](int64_t B, int64_t N, int64_t M, int path) {
        return chamfer_distance_backward_workspace(B, N, M, static_cast<ChamferPath>(path));
      },
      py::arg("B"), py::arg("N"), py::arg("M"), py::arg("path"));

  m.def(
      "chamfer_distance_backward_cuda",
      [](Address grad_d_xy, Address grad_d_yx, Address x, Address y, Address lengths_x, Address lengths_y,
         Address index_xy, Address index_yx, Address grad_x, Address grad_y, Address workspace, int64_t B, int64_t N,
         int64_t M, int path, int device, Address stream) {
        chamfer_distance_backward_cuda(pointer<const float>(grad_d_xy), pointer<const float>(grad_d_yx),
                                       pointer<const float>(x), pointer<const float>(y),
                                       pointer<const int64_t>(lengths_x), pointer<const int64_t>(lengths_y),
                                       pointer<const int64_t>(index_xy), pointer<const int64_t>(index_yx),
                                       pointer<float>(grad_x), pointer<float>(grad_y), pointer<int32_t>(workspace), B,
                                       N, M, static_cast<ChamferPath>(path), Stream{device, pointer<void>(stream)});
      },
      py::arg("grad_d_xy"), py::arg("grad_d_yx"), py::arg("x"), py::arg("y"), py::arg("lengths_x"),
      py::arg("lengths_y"), py::arg("index_xy"), py::arg("index_yx"), py::arg("grad_x"), py::arg("grad_y"),
      py::arg("workspace"), py::arg("B"), py::arg("N"), py::arg("M"), py::arg("path"), py::arg("device"),
      py::arg("stream"), py::call_guard<py::gil_scoped_release>());

  m.def("knn_workspace_cuda", &knn_workspace_cuda, py::arg("B"), py::arg("M"), py::arg("N"), py::arg("k"),
        py::arg("path"));

  m.def(
      "knn_cuda",
      [](Address queries, Address points, Address lengths, Address workspace, Address sq_dists, Address indices,
         int64_t B, int64_t M, int64_t N, int64_t k, int path, int device, Address stream) {
        knn_cuda(pointer<const float>(queries), pointer<const float>(points), pointer<const int64_t>(lengths),
                 pointer<void>(workspace), pointer<float>(sq_dists), pointer<int64_t>(indices), B, M, N, k, path,
                 Stream{device, pointer<void>(stream)});
      },
      py::arg("queries"), py::arg("points"), py::arg("lengths"), py::arg("workspace"), py::arg("sq_dists"),
      py::arg("indices"), py::arg("B"), py::arg("M"), py::arg("N"), py::arg("k"), py::arg("path"), py::arg("device"),
      py::arg("stream"), py::call_guard<py::gil_scoped_release>());

  m.def(
      "knn_backward_cuda",
      [](Address grad_sq_dists, Address queries, Address points, Address indices, Address workspace,
         Address grad_queries, Address grad_points, int64_t B, int64_t M, int64_t N, int64_t k, int device,
         Address stream) {
        knn_backward_cuda(pointer<const float>(grad_sq_dists), pointer<const float>(queries),
                          pointer<const float>(points), pointer<const int64_t>(indices), pointer<int32_t>(workspace),
                          pointer<float>(grad_queries), pointer<float>(grad_points), B, M, N, k,
                          Stream{device, pointer<void>(stream)});
      },
      py::arg("grad_sq_dists"), py::arg("queries"), py::arg("points"), py::arg("indices"), py::arg("workspace"),
      py::arg("grad_queries"), py::arg("grad_points"), py::arg("B"), py::arg("M"), py::arg("N"), py::arg("k"),
      py::arg("device"), py::arg("stream"), py::call_guard<py::gil_scoped_release>());

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
