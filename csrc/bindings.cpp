// The only PYBIND11_MODULE. Tensors come as addresses, and every size beside them: this file never sees torch, and
// checks nothing (jointmae/ops/<op>.py does, before it takes an address). The GIL is released in every kernel.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "common/device.h"
#include "common/isa.h"
#include "farthest_point_sample/farthest_point_sample.h"

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
      [](Address points, Address lengths, Address indices, int64_t B, int64_t N, int64_t M, int64_t start,
         bool float64, int num_threads) {
        dispatch_cpu(float64, [&](auto level, auto scalar) {
          using T = decltype(scalar);
          jointmae::farthest_point_sample_cpu<decltype(level)::value, T>(
              pointer<const T>(points), pointer<const int64_t>(lengths), pointer<int64_t>(indices), B, N, M, start,
              num_threads);
        });
      },
      py::arg("points"), py::arg("lengths"), py::arg("indices"), py::arg("B"), py::arg("N"), py::arg("M"),
      py::arg("start"), py::arg("float64"), py::arg("num_threads"), py::call_guard<py::gil_scoped_release>());
}
