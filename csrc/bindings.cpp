// The only PYBIND11_MODULE. Tensors come as addresses, and every size beside them: this file never sees torch, and
// checks nothing (jointmae/ops/<op>.py does, before it takes an address). The GIL is released in every kernel.
#include "bindings.h"

#include <string>
#include <vector>

#include "all_finite/all_finite.h"
#include "chamfer_distance/chamfer_distance.h"
#include "common/device.h"
#include "common/isa.h"
#include "common/kept_memory.h"
#include "common/kept_tensor.h"
#include "common/simd_half.h"
#include "farthest_point_sample/farthest_point_sample.h"
#include "group/group.h"
#include "knn/knn.h"
#include "local_aligned_attention/local_aligned_attention.h"
#include "project_points/project_points.h"

namespace py = pybind11;
using jointmae::Address;
using jointmae::dispatch_isa;
using jointmae::pointer;

namespace {

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

// Calls `call(level, E{})` with the run-time instruction set and the type of that name in torch.
template <typename Call>
void dispatch_cpu(const std::string& dtype, Call&& call) {
  dispatch_isa([&](auto level) {
    if (dtype == "bfloat16") {
      call(level, jointmae::BFloat16{});
    } else if (dtype == "float16") {
      call(level, jointmae::Float16{});
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
  jointmae::bind_cuda(m);
#else
  m.attr("built_with_cuda") = false;
#endif
  m.def("isa", [] { return jointmae::isa_name(jointmae::run_isa()); });
  m.def(
      "all_finite",
      [](Address values, int64_t count, bool float64, int num_threads) {
        bool finite = false;
        dispatch_cpu(float64, [&](auto level, auto scalar) {
          using T = decltype(scalar);
          finite = jointmae::all_finite_cpu<decltype(level)::value>(pointer<const T>(values), count, num_threads);
        });
        return finite;
      },
      py::arg("values"), py::arg("count"), py::arg("float64"), py::arg("num_threads"),
      py::call_guard<py::gil_scoped_release>());

  m.def(
      "new_kept_tensor",
      [](const py::tuple& shape, uint8_t code, uint8_t bits) {
        std::vector<int64_t> sizes;
        for (const py::handle size : shape) sizes.push_back(size.cast<int64_t>());
        return py::capsule(jointmae::new_kept_tensor(sizes.data(), static_cast<int32_t>(sizes.size()), {code, bits, 1}),
                           "dltensor", [](PyObject* capsule) {
                             if (!PyCapsule_IsValid(capsule, "dltensor")) return;  // a tensor has taken it over
                             auto* tensor =
                                 static_cast<jointmae::DLManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"));
                             tensor->deleter(tensor);
                           });
      },
      py::arg("shape"), py::arg("code"), py::arg("bits"));
  m.attr("KEPT_BYTES") = jointmae::kKeptBytes;
  m.def("kept_bytes", &jointmae::kept_bytes);

  m.def(
      "farthest_point_sample_cpu",
      [](Address points, Address lengths, Address indices, int64_t B, int64_t N, int64_t M, int64_t start, int path,
         bool float64, int num_threads) {
        dispatch_cpu(float64, [&](auto level, auto scalar) {
          using T = decltype(scalar);
          jointmae::farthest_point_sample_cpu<decltype(level)::value, T>(
              pointer<const T>(points), pointer<const int64_t>(lengths), pointer<int64_t>(indices), B, N, M, start,
              static_cast<jointmae::SamplingPath>(path), num_threads);
        });
      },
      py::arg("points"), py::arg("lengths"), py::arg("indices"), py::arg("B"), py::arg("N"), py::arg("M"),
      py::arg("start"), py::arg("path"), py::arg("float64"), py::arg("num_threads"),
      py::call_guard<py::gil_scoped_release>());

  m.def(
      "knn_cpu",
      [](Address queries, Address points, Address lengths, Address sq_dists, Address indices, int64_t B, int64_t M,
         int64_t N, int64_t k, int path, bool float64, int num_threads) {
        dispatch_cpu(float64, [&](auto level, auto scalar) {
          using T = decltype(scalar);
          jointmae::knn_cpu<decltype(level)::value, T>(pointer<const T>(queries), pointer<const T>(points),
                                                       pointer<const int64_t>(lengths), pointer<T>(sq_dists),
                                                       pointer<int64_t>(indices), B, M, N, k, path, num_threads);
        });
      },
      py::arg("queries"), py::arg("points"), py::arg("lengths"), py::arg("sq_dists"), py::arg("indices"), py::arg("B"),
      py::arg("M"), py::arg("N"), py::arg("k"), py::arg("path"), py::arg("float64"), py::arg("num_threads"),
      py::call_guard<py::gil_scoped_release>());

  m.def(
      "knn_backward_cpu",
      [](Address grad_sq_dists, Address queries, Address points, Address indices, Address grad_queries,
         Address grad_points, int64_t B, int64_t M, int64_t N, int64_t k, bool float64, int num_threads) {
        dispatch_cpu(float64, [&](auto level, auto scalar) {
          using T = decltype(scalar);
          jointmae::knn_backward_cpu<decltype(level)::value, T>(
              pointer<const T>(grad_sq_dists), pointer<const T>(queries), pointer<const T>(points),
              pointer<const int64_t>(indices), pointer<T>(grad_queries), pointer<T>(grad_points), B, M, N, k,
              num_threads);
        });
      },
      py::arg("grad_sq_dists"), py::arg("queries"), py::arg("points"), py::arg("indices"), py::arg("grad_queries"),
      py::arg("grad_points"), py::arg("B"), py::arg("M"), py::arg("N"), py::arg("k"), py::arg("float64"),
      py::arg("num_threads"), py::call_guard<py::gil_scoped_release>());

  m.def(
      "group_cpu",
      [](Address features, Address indices, Address out, int64_t B, int64_t N, int64_t R, int64_t row_bytes,
         int num_threads) {
        dispatch_isa([&](auto level) {
          jointmae::group_cpu<decltype(level)::value>(pointer<const void>(features), pointer<const int64_t>(indices),
                                                      pointer<void>(out), B, N, R, row_bytes, num_threads);
        });
      },
      py::arg("features"), py::arg("indices"), py::arg("out"), py::arg("B"), py::arg("N"), py::arg("R"),
      py::arg("row_bytes"), py::arg("num_threads"), py::call_guard<py::gil_scoped_release>());

  m.def(
      "group_backward_cpu",
      [](Address grad, Address indices, Address grad_features, int64_t B, int64_t N, int64_t R, int64_t C, bool float64,
         int num_threads) {
        dispatch_cpu(float64, [&](auto level, auto scalar) {
          using T = decltype(scalar);
          jointmae::group_backward_cpu<decltype(level)::value, T>(pointer<const T>(grad),
                                                                  pointer<const int64_t>(indices),
                                                                  pointer<T>(grad_features), B, N, R, C, num_threads);
        });
      },
      py::arg("grad"), py::arg("indices"), py::arg("grad_features"), py::arg("B"), py::arg("N"), py::arg("R"),
      py::arg("C"), py::arg("float64"), py::arg("num_threads"), py::call_guard<py::gil_scoped_release>());

  m.def(
      "chamfer_distance_cpu",
      [](Address x, Address y, Address lengths_x, Address lengths_y, Address d_xy, Address d_yx, Address index_xy,
         Address index_yx, int64_t B, int64_t N, int64_t M, int path, bool float64, int num_threads) {
        dispatch_cpu(float64, [&](auto level, auto scalar) {
          using T = decltype(scalar);
          jointmae::chamfer_distance_cpu<decltype(level)::value, T>(
              pointer<const T>(x), pointer<const T>(y), pointer<const int64_t>(lengths_x),
              pointer<const int64_t>(lengths_y), pointer<T>(d_xy), pointer<T>(d_yx), pointer<int64_t>(index_xy),
              pointer<int64_t>(index_yx), B, N, M, static_cast<jointmae::ChamferCpuPath>(path), num_threads);
        });
      },
      py::arg("x"), py::arg("y"), py::arg("lengths_x"), py::arg("lengths_y"), py::arg("d_xy"), py::arg("d_yx"),
      py::arg("index_xy"), py::arg("index_yx"), py::arg("B"), py::arg("N"), py::arg("M"), py::arg("path"),
      py::arg("float64"), py::arg("num_threads"), py::call_guard<py::gil_scoped_release>());

  m.def(
      "chamfer_distance_backward_cpu",
      [](Address grad_d_xy, Address grad_d_yx, int64_t step_xy, int64_t step_yx, Address x, Address y,
         Address lengths_x, Address lengths_y, Address index_xy, Address index_yx, Address grad_x, Address grad_y,
         int64_t B, int64_t N, int64_t M, bool float64, int num_threads) {
        dispatch_cpu(float64, [&](auto level, auto scalar) {
          using T = decltype(scalar);
          jointmae::chamfer_distance_backward_cpu<decltype(level)::value, T>(
              pointer<const T>(grad_d_xy), pointer<const T>(grad_d_yx), step_xy, step_yx, pointer<const T>(x),
              pointer<const T>(y), pointer<const int64_t>(lengths_x), pointer<const int64_t>(lengths_y),
              pointer<const int64_t>(index_xy), pointer<const int64_t>(index_yx), pointer<T>(grad_x),
              pointer<T>(grad_y), B, N, M, num_threads);
        });
      },
      py::arg("grad_d_xy"), py::arg("grad_d_yx"), py::arg("step_xy"), py::arg("step_yx"), py::arg("x"), py::arg("y"),
      py::arg("lengths_x"), py::arg("lengths_y"), py::arg("index_xy"), py::arg("index_yx"), py::arg("grad_x"),
      py::arg("grad_y"), py::arg("B"), py::arg("N"), py::arg("M"), py::arg("float64"), py::arg("num_threads"),
      py::call_guard<py::gil_scoped_release>());

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
        bool sound = false;
        dispatch_cpu(float64, [&](auto level, auto scalar) {
          using T = decltype(scalar);
          sound = jointmae::project_points_cpu<decltype(level)::value, T>(
              pointer<const T>(points), pointer<const T>(world_to_cam), pointer<const T>(intrinsics), pointer<T>(depth),
              pointer<int32_t>(index), pointer<T>(coverage), pointer<int32_t>(pixels), pointer<int64_t>(dropped),
              pointer<T>(weight_sum), spec, num_threads);
        });
        return sound;
      },
      py::arg("points"), py::arg("world_to_cam"), py::arg("intrinsics"), py::arg("depth"), py::arg("index"),
      py::arg("coverage"), py::arg("pixels"), py::arg("dropped"), py::arg("weight_sum"), py::arg("spec"),
      py::arg("float64"), py::arg("num_threads"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "project_points_backward_cpu",
      [](Address grad_depth, Address grad_coverage, Address points, Address world_to_cam, Address intrinsics,
         Address depth, Address index, Address weight_sum, Address grad_views, Address grad_points,
         const jointmae::ProjectSpec& spec, bool float64, int num_threads) {
        dispatch_cpu(float64, [&](auto level, auto scalar) {
          using T = decltype(scalar);
          jointmae::project_points_backward_cpu<decltype(level)::value, T>(
              pointer<const T>(grad_depth), pointer<const T>(grad_coverage), pointer<const T>(points),
              pointer<const T>(world_to_cam), pointer<const T>(intrinsics), pointer<const T>(depth),
              pointer<const int32_t>(index), pointer<const T>(weight_sum), pointer<T>(grad_views),
              pointer<T>(grad_points), spec, num_threads);
        });
      },
      py::arg("grad_depth"), py::arg("grad_coverage"), py::arg("points"), py::arg("world_to_cam"),
      py::arg("intrinsics"), py::arg("depth"), py::arg("index"), py::arg("weight_sum"), py::arg("grad_views"),
      py::arg("grad_points"), py::arg("spec"), py::arg("float64"), py::arg("num_threads"),
      py::call_guard<py::gil_scoped_release>());

  py::class_<jointmae::AttentionSpec>(m, "AttentionSpec")
      .def(py::init([](int64_t B, int64_t h, int64_t L, int64_t d, int64_t num_3d, bool global_2d, bool global_3d) {
             return jointmae::AttentionSpec{B, h, L, d, num_3d, global_2d, global_3d};
           }),
           py::arg("B"), py::arg("h"), py::arg("L"), py::arg("d"), py::arg("num_3d"), py::arg("global_2d"),
           py::arg("global_3d"));
  py::class_<jointmae::Strided>(m, "Strided")
      .def(py::init([](Address data, int64_t b, int64_t h, int64_t l) {
             return jointmae::Strided{pointer<void>(data), b, h, l};
           }),
           py::arg("data"), py::arg("b"), py::arg("h"), py::arg("l"));
  m.def(
      "local_aligned_attention_order_cpu",
      [](Address cell, Address order, int64_t B, int64_t L, int64_t num_3d, int num_threads) {
        dispatch_isa([&](auto level) {
          jointmae::local_aligned_attention_order_cpu<decltype(level)::value>(
              pointer<const int32_t>(cell), pointer<int32_t>(order), B, L, num_3d, num_threads);
        });
      },
      py::arg("cell"), py::arg("order"), py::arg("B"), py::arg("L"), py::arg("num_3d"), py::arg("num_threads"),
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "local_aligned_attention_cpu",
      [](const jointmae::Strided& q, const jointmae::Strided& k, const jointmae::Strided& v, Address order,
         const jointmae::Strided& out, Address lse, const jointmae::AttentionSpec& spec, const std::string& dtype,
         int num_threads) {
        dispatch_cpu(dtype, [&](auto level, auto element) {
          jointmae::local_aligned_attention_cpu<decltype(level)::value, decltype(element)>(
              q, k, v, pointer<const int32_t>(order), out, pointer<float>(lse), spec, num_threads);
        });
      },
      py::arg("q"), py::arg("k"), py::arg("v"), py::arg("order"), py::arg("out"), py::arg("lse"), py::arg("spec"),
      py::arg("dtype"), py::arg("num_threads"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "local_aligned_attention_backward_cpu",
      [](const jointmae::Strided& grad, const jointmae::Strided& q, const jointmae::Strided& k,
         const jointmae::Strided& v, const jointmae::Strided& out, Address lse, Address order,
         const jointmae::Strided& dq, const jointmae::Strided& dk, const jointmae::Strided& dv,
         const jointmae::AttentionSpec& spec, const std::string& dtype, int num_threads) {
        dispatch_cpu(dtype, [&](auto level, auto element) {
          jointmae::local_aligned_attention_backward_cpu<decltype(level)::value, decltype(element)>(
              grad, q, k, v, out, pointer<const float>(lse), pointer<const int32_t>(order), dq, dk, dv, spec,
              num_threads);
        });
      },
      py::arg("grad"), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"), py::arg("lse"), py::arg("order"),
      py::arg("dq"), py::arg("dk"), py::arg("dv"), py::arg("spec"), py::arg("dtype"), py::arg("num_threads"),
      py::call_guard<py::gil_scoped_release>());
}
