"""Checks that the ops share. Every message is: op, argument, rule, value. `ValueError` and `TypeError` are for users.

Shapes and dtypes are checked in the public functions, values (finite, in range) in the kernels' Python side, so that
`torch.compile` never sees a branch on data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jointmae.ops.native import address, kernels

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_check_finite_on_gpu = False


def check_finite(enabled: bool) -> None:
    """Whether ops look at values (NaN, infinity, lengths, indices) on other devices than the CPU too.

    There the look waits for the device, so it is off by default; bad values then give wrong results, but never an index
    or an address out of range.
    """
    global _check_finite_on_gpu
    _check_finite_on_gpu = enabled


def shape_of(tensor: Tensor) -> str:
    """`[2, 1024, 3]`, for messages."""
    return str(list(tensor.shape))


def require_tensor(op: str, name: str, tensor: Tensor) -> None:
    """`tensor` must be one."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")


def require_floating(op: str, name: str, tensor: Tensor) -> None:
    """`tensor` must be a floating-point tensor, of a type that PyTorch can add up (there are 8-bit ones too)."""
    require_tensor(op, name, tensor)
    if tensor.dtype not in _FLOATS:
        raise TypeError(f"{op}: {name} must be floating point, got {tensor.dtype}; call .float() on it")


def require_points(op: str, name: str, points: Tensor) -> None:
    """`points` must be a floating-point tensor [B, N, 3] with N >= 1."""
    require_floating(op, name, points)
    if points.dim() != 3 or points.shape[-1] != 3:
        raise ValueError(f"{op}: {name} must have shape [B, N, 3], got {shape_of(points)}")
    if points.shape[1] == 0:
        raise ValueError(f"{op}: {name} must have at least one point, got {shape_of(points)}")
    if points.shape[1] >= 2**31:
        raise ValueError(f"{op}: {name} must have fewer than 2^31 points, got {points.shape[1]}")


def require_same(op: str, first: str, a: Tensor, second: str, b: Tensor) -> None:
    """Two tensors must have the same number of clouds and lie on the same device."""
    if a.shape[0] != b.shape[0]:
        raise ValueError(f"{op}: {first} and {second} must have the same B, got {a.shape[0]} and {b.shape[0]}")
    if a.device != b.device:
        raise ValueError(f"{op}: {first} and {second} must be on one device, got {a.device} and {b.device}")


def require_int(op: str, name: str, value: int) -> None:
    """`value` must be an int; a SymInt of torch.compile is one too."""
    if not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{op}: {name} must be an int, got {type(value).__name__}")


def require_count(op: str, name: str, value: int, limit_name: str, limit: int) -> None:
    """A count must be an int in 1..limit."""
    require_int(op, name, value)
    if not 1 <= value <= limit:
        raise ValueError(f"{op}: {name} must be in [1, {limit_name}={limit}], got {value}")


def require_lengths(op: str, name: str, lengths: Tensor | None, points: Tensor) -> None:
    """`lengths` must be int64 [B] on the device of `points`, or None; its values: `require_length_values`."""
    if lengths is None:
        return
    require_tensor(op, name, lengths)
    if lengths.dtype != torch.int64:
        raise TypeError(f"{op}: {name} must be int64, got {lengths.dtype}")
    if lengths.shape != points.shape[:1]:
        raise ValueError(f"{op}: {name} must have shape [B={points.shape[0]}], got {shape_of(lengths)}")
    if lengths.device != points.device:
        raise ValueError(f"{op}: {name} must be on {points.device}, got {lengths.device}")


def values_are_checked(tensor: Tensor) -> bool:
    """Whether values of `tensor` are looked at: always on the CPU, elsewhere after `check_finite(True)`."""
    return tensor.device.type == "cpu" or _check_finite_on_gpu


def require_length_values(op: str, name: str, lengths: Tensor | None, num_points: int, at_least: int = 1) -> None:
    """Each length must lie in at_least..num_points, where `at_least` is the k or the number of samples asked for."""
    if lengths is None or lengths.numel() == 0 or not values_are_checked(lengths):
        return
    shortest, longest = int(lengths.min()), int(lengths.max())
    if shortest < at_least:
        raise ValueError(f"{op}: {name} must be at least {at_least}, got {shortest}")
    if longest > num_points:
        raise ValueError(f"{op}: {name} must be at most N={num_points}, got {longest}")


def require_finite(op: str, name: str, tensor: Tensor) -> None:
    """No NaN and no infinity; names the first bad row. Skipped off the CPU unless `check_finite(True)`."""
    if not values_are_checked(tensor):
        return
    if _all_finite(tensor):
        return
    row = torch.isfinite(tensor).logical_not().nonzero()[0].tolist()
    raise ValueError(f"{op}: {name} must be finite, got {tensor[tuple(row)].item()} at {row}")


def _all_finite(tensor: Tensor) -> bool:
    is_float64 = tensor.dtype == torch.float64
    fits = tensor.device.type == "cpu" and (is_float64 or tensor.dtype == torch.float32) and tensor.is_contiguous()
    if fits and kernels is not None:  # 10 times as fast as PyTorch's look, which writes what it sees
        return bool(kernels.all_finite(address(tensor), tensor.numel(), is_float64, torch.get_num_threads()))
    return bool(torch.isfinite(tensor).all())


def as_kernel_input(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Contiguous and of one dtype: float64 where any is, else float32. Differentiable."""
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    return tuple(tensor.to(dtype).contiguous() for tensor in tensors)
