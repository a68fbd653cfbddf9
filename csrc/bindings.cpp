// The only PYBIND11_MODULE. Tensors come as addresses, and every size beside them: this file never sees torch, and
// checks nothing (jointmae/ops/<op>.py does, before it takes an address). The GIL is released in every kernel.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "common/device.h"
#include "common/isa.h"
#include "farthest_point_sample/farthest_point_sample.h"
#include "project_points/project_points.h"

namespace py = pybind11;
using jointmae::dispatch_isa;

namespace {

using Address = std::uintptr_t;

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// Calls `call(level, T{})` with the run-time instruction set and with float or double.
template <typename Call>
void dispatch_cpu(bool float64, Call&& call) {
  dispatch_isa([&](auto level) {
    if (float64) {
      call(level, double{});
    } else {
      call(level, float{});
    }
  });
}

}  // namespace

PYBIND11_MODULE(jointmae_native, m) {
  m.doc() = "The compiled kernels of jointmae; called through jointmae.ops.";
  m.attr("source_hash") = JOINTMAE_SOURCE_HASH;
#if defined(JOINTMAE_CUDA)
  m.attr("built_with_cuda") = true;
  m.def("cuda_driver_serves_toolkit", &jointmae::cuda_driver_serves_toolkit);
#else
  m.attr("built_with_cuda") = false;
#endif
  m.def("isa", [] { return jointmae::isa_name(jointmae::run_isa()); });

  m.def(
      "farthest_point_sample_cpu",
      [](Address points, Address lengths, Address indices, int64_t B, int64_t N, int64_t M, int64_t start, bool float64,
         int num_threads) {
        dispatch_cpu(float64, [&](auto level, auto scalar) {
          using T = decltype(scalar);
          jointmae::farthest_point_sample_cpu<decltype(level)::value, T>(
              pointer<const T>(points), pointer<const int64_t>(lengths), pointer<int64_t>(indices), B, N, M, start,
              num_threads);
        });
      },
      py::arg("points"), py::arg("lengths"), py::arg("indices"), py::arg("B"), py::arg("N"), py::arg("M"),
      py::arg("start"), py::arg("float64"), py::arg("num_threads"), py::call_guard<py::gil_scoped_release>());

  py::class_<jointmae::ProjectSpec>(m, "ProjectSpec")
      .def(py::init([](int64_t B, int64_t V, int64_t N, int64_t H, int64_t W, int64_t radius, int mode, double sigma,
                       double temperature, double background) {
             return jointmae::ProjectSpec{
                 B, V, N, H, W, radius, static_cast<jointmae::ProjectMode>(mode), sigma, temperature, background};
           }),
           py::arg("B"), py::arg("V"), py::arg("N"), py::arg("H"), py::arg("W"), py::arg("radius"), py::arg("mode"),
           py::arg("sigma"), py::arg("temperature"), py::arg("background"));
  m.def(
      "project_points_cpu",
      [](Address points, Address world_to_cam, Address intrinsics, Address depth, Address index, Address coverage,
         Address pixels, Address dropped, Address weight_sum, const jointmae::ProjectSpec& spec, bool float64,
         int num_threads) {
        dispatch_cpu(float64, [&](auto level, auto scalar) {
          using T = decltype(scalar);
          jointmae::project_points_cpu<decltype(level)::value, T>(
              pointer<const T>(points), pointer<const T>(world_to_cam), pointer<const T>(intrinsics), pointer<T>(depth),
              pointer<int32_t>(index), pointer<T>(coverage), pointer<int32_t>(pixels), pointer<int64_t>(dropped),
              pointer<T>(weight_sum), spec, num_threads);
        });
      },
      py::arg("points"), py::arg("world_to_cam"), py::arg("intrinsics"), py::arg("depth"), py::arg("index"),
      py::arg("coverage"), py::arg("pixels"), py::arg("dropped"), py::arg("weight_sum"), py::arg("spec"),
      py::arg("float64"), py::arg("num_threads"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "project_points_backward_cpu",
      [](Address grad_depth, Address grad_coverage, Address points, Address world_to_cam, Address intrinsics,
         Address depth, Address index, Address weight_sum, Address grad_views, const jointmae::ProjectSpec& spec,
         bool float64, int num_threads) {
        dispatch_cpu(float64, [&](auto level, auto scalar) {
          using T = decltype(scalar);
          jointmae::project_points_backward_cpu<decltype(level)::value, T>(
              pointer<const T>(grad_depth), pointer<const T>(grad_coverage), pointer<const T>(points),
              pointer<const T>(world_to_cam), pointer<const T>(intrinsics), pointer<const T>(depth),
              pointer<const int32_t>(index), pointer<const T>(weight_sum), pointer<T>(grad_views), spec, num_threads);
        });
      },
      py::arg("grad_depth"), py::arg("grad_coverage"), py::arg("points"), py::arg("world_to_cam"),
      py::arg("intrinsics"), py::arg("depth"), py::arg("index"), py::arg("weight_sum"), py::arg("grad_views"),
      py::arg("spec"), py::arg("float64"), py::arg("num_threads"), py::call_guard<py::gil_scoped_release>());
}
