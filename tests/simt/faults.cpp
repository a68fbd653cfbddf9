// Small kernels with a fault that can be switched on: the executor must notice each, and pass each without it.
#include "bindings.h"
#include "common/cuda.h"

namespace py = pybind11;

namespace simt {
namespace {

using jointmae::kAllLanes;
using jointmae::launch;
using jointmae::shared_memory;

// Each block of 64 reverses its 64 numbers through shared memory.
void reverse_kernel(const int* in, int* out, bool without_barrier, bool off_by_one) {
  int* tile = shared_memory<int>();
  const int i = static_cast<int>(threadIdx.x), first = static_cast<int>(blockIdx.x) * 64;
  tile[i + (off_by_one ? 1 : 0)] = in[first + i];
  if (!without_barrier) __syncthreads();
  out[first + i] = tile[63 - i];
}

// The sum of 32 numbers, by halves; lanes of the upper half have nothing to add.
void sum_kernel(const int* in, int* out, unsigned mask, bool some_leave) {
  const int lane = static_cast<int>(threadIdx.x);
  if (some_leave && lane >= 16) return;
  int sum = in[lane];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(mask, sum, static_cast<unsigned>(step));
  if (lane == 0) *out = sum;
}

// Every thread must come to the barrier; with the fault only the first warp does.
void divergent_kernel(int* out, bool fault) {
  if (!fault || threadIdx.x < 32) __syncthreads();
  out[threadIdx.x] = 1;
}

// Lanes that part in a branch meet in different words.
void words_kernel(int* out, bool fault) {
  const int lane = static_cast<int>(threadIdx.x);
  out[lane] = fault && lane % 2 ? __any_sync(kAllLanes, 1) : __all_sync(kAllLanes, 1);
}

// Blocks of a cluster exchange a number; without the last barrier a block may be gone when it is read.
void cluster_kernel(int* out, bool without_first_barrier, bool without_last_barrier) {
  int* mine = shared_memory<int>();
  if (threadIdx.x == 0) *mine = static_cast<int>(blockIdx.x);
  if (!without_first_barrier) jointmae::cluster_sync();
  if (threadIdx.x == 0) out[blockIdx.x] = *jointmae::cluster_shared(mine, 1 - jointmae::cluster_rank());
  if (!without_last_barrier) jointmae::cluster_sync();
}

// All blocks add to a counter, then read what they all have added.
void grid_kernel(int* counter, int* out, bool without_barrier) {
  if (threadIdx.x == 0) atomicAdd(counter, 1);
  if (!without_barrier) jointmae::grid_sync();
  if (threadIdx.x == 0) out[blockIdx.x] = *counter;
}

const jointmae::Stream kStream{0, nullptr};

}  // namespace

void bind_faults(py::module_& m) {
  using jointmae::Address;
  using jointmae::pointer;
  m.def("reverse", [](Address in, Address out, int64_t blocks, bool without_barrier, bool off_by_one) {
    launch("reverse", reverse_kernel, {blocks, 64, 64 * sizeof(int)}, kStream, pointer<const int>(in),
           pointer<int>(out), without_barrier, off_by_one);
  });
  m.def("sum", [](Address in, Address out, unsigned mask, bool some_leave) {
    launch("sum", sum_kernel, {1, 32}, kStream, pointer<const int>(in), pointer<int>(out), mask, some_leave);
  });
  m.def("divergent", [](Address out, bool fault) {
    launch("divergent", divergent_kernel, {1, 64}, kStream, pointer<int>(out), fault);
  });
  m.def("words",
        [](Address out, bool fault) { launch("words", words_kernel, {1, 32}, kStream, pointer<int>(out), fault); });
  m.def("cluster", [](Address out, bool without_first_barrier, bool without_last_barrier) {
    launch("cluster", cluster_kernel, {4, 32, sizeof(int), 2}, kStream, pointer<int>(out), without_first_barrier,
           without_last_barrier);
  });
  m.def("grid", [](Address counter, Address out, bool cooperative, bool without_barrier) {
    launch("grid", grid_kernel, {4, 32, 0, 1, cooperative}, kStream, pointer<int>(counter), pointer<int>(out),
           without_barrier);
  });
}

}  // namespace simt
