// `jointmae_simt`: the CUDA half of the module, compiled by g++ and run by the executor; addresses are of CPU tensors.
#include "bindings.h"
#include "simt.h"

namespace simt {
void bind_faults(pybind11::module_& m);  // faults.cpp
}

PYBIND11_MODULE(jointmae_simt, m) {
  jointmae::bind_cuda(m);
  simt::bind_faults(m);
  m.def("set_order", &simt::set_order, pybind11::arg("order"),
        "The order of threads and blocks: 0 ascending, 1 descending, others shuffled by this seed.");
  m.def(
      "set_limits",
      [](int num_sms, int max_shared_bytes, int capability) { simt::limits = {num_sms, max_shared_bytes, capability}; },
      pybind11::arg("num_sms") = 4, pybind11::arg("max_shared_bytes") = 227 << 10, pybind11::arg("capability") = 90,
      "What the device pretends to be.");
}
