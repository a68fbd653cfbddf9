// The parts of the module's bindings.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace jointmae {

using Address = std::uintptr_t;

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// Adds <op>_cuda of every op. tests/simt/ makes a module of this alone.
void bind_cuda(pybind11::module_& m);

}  // namespace jointmae
