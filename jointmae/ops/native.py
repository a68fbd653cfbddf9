"""The door to the compiled module `jointmae_native`: is it there, is it of this checkout, and why not."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from jointmae.build_info import source_hash
from jointmae.errors import UsageError

REBUILD = "run `pip install .` in the checkout"


class NativeKernelsWarning(RuntimeWarning):
    """The fast kernels cannot be used, so `jointmae.ops.reference` (plain PyTorch) does the work."""


def _load() -> tuple[ModuleType | None, str]:
    """The compiled module, or None and the reason why it cannot be used, with the cure."""
    try:
        import jointmae_native
    except ImportError as error:
        return None, f"they are not installed ({error}); with a C++ compiler on the machine, {REBUILD}"
    checkout = source_hash()
    if checkout is not None and checkout != jointmae_native.source_hash:
        return None, f"jointmae_native was built from other sources than this checkout's csrc/; rebuild: {REBUILD}"
    try:
        jointmae_native.isa()
    except ValueError as error:  # JOINTMAE_ISA is set to what is none, or to what this processor lacks
        raise UsageError(str(error)) from error
    return jointmae_native, ""


kernels, why_not = _load()
# The same module where its CUDA kernels can be used, else None.
cuda: ModuleType | None = None
if kernels is not None and kernels.built_with_cuda and kernels.cuda_driver_serves_toolkit():
    cuda = kernels
_OLDEST_CAPABILITY = (8, 0)  # of the GPUs that the kernels are for
_warned: set[str] = set()

if kernels is None and "rebuild" in why_not:  # said at once: a stale module is a mistake, a missing one may be a choice
    warnings.warn(f"jointmae: the native kernels are not used: {why_not}", NativeKernelsWarning, stacklevel=2)
    _warned.add("cpu")


def warn_reference(device_type: str) -> None:
    """Says, once per device type, that an op runs on the reference path, and how to get the kernels."""
    if device_type in _warned:
        return
    _warned.add(device_type)
    reason = why_not
    if cuda is not None and device_type == "cuda":
        reason = "the kernels need a GPU of compute capability 8.0 or later"
    elif kernels is not None and device_type == "cuda":
        reason = "the module was built without CUDA, or the driver is older than the toolkit: " + (
            f"with nvcc on PATH and a current driver, {REBUILD}"
        )
    elif kernels is not None:
        reason = f"there are none for device type '{device_type}'"
    warnings.warn(
        f"jointmae: native kernels are not used on '{device_type}', plain PyTorch is (slower): {reason}",
        NativeKernelsWarning,
        stacklevel=3,
    )


def address(tensor: Tensor | None) -> int:
    """Where the data of a contiguous tensor begins; 0 (a null pointer) for None."""
    if tensor is None:
        return 0
    assert tensor.is_contiguous(), "kernels take contiguous tensors"
    return tensor.data_ptr()


NewEmpty = Callable[..., Tensor]  # Tensor.new_empty, or what stands for it
_KEPT_FROM = 1 << 20  # bytes; below, the C library's own memory is warm
_DLPACK_TYPES = {  # code and bits
    torch.float16: (2, 16),
    torch.bfloat16: (4, 16),
    torch.float32: (2, 32),
    torch.float64: (2, 64),
    torch.int32: (0, 32),
    torch.int64: (0, 64),
}


def new_empty(beside: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised result of a CPU kernel: `Tensor.new_empty`, but the memory of large ones is used again.

    csrc/common/kept_memory.h tells why. The storage of those cannot be resized.
    """
    dtype = dtype or beside.dtype
    if math.prod(shape) * dtype.itemsize >= _KEPT_FROM and dtype in _DLPACK_TYPES:
        assert kernels is not None
        try:
            return from_dlpack(kernels.new_kept_tensor(shape, *_DLPACK_TYPES[dtype]))
        except MemoryError:  # PyTorch says how much it was
            return beside.new_empty(shape, dtype=dtype)
    return beside.new_empty(shape, dtype=dtype)


@functools.cache
def serves(device_index: int) -> bool:
    """Whether the CUDA kernels are for this GPU."""
    return torch.cuda.get_device_capability(device_index) >= _OLDEST_CAPABILITY


def stream_of(tensor: Tensor) -> tuple[int, int]:
    """The device of a CUDA tensor and the current stream there, as the kernels take them."""
    stream = torch.cuda.current_stream(tensor.device)
    return stream.device_index, stream.cuda_stream
