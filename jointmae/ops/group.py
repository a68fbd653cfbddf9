"""Grouping: features gathered by index. B clouds, N points, C channels, G groups of k."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jointmae.ops import native, reference
from jointmae.ops.checks import require_floating, require_same, require_tensor, shape_of, values_are_checked
from jointmae.ops.native import NewEmpty, address, kernels
from jointmae.ops.registry import define

_OP = "group"
_GRAD_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # in the order of group.h
_INT32_COUNTS = 2**31 - 8  # the kernels of the backward count in int32, and look a few ahead


def group(features: Tensor, indices: Tensor) -> Tensor:
    """`out[b, g, j] = features[b, indices[b, g, j]]`: features [B, N, C], indices [B, G, k] int64 -> [B, G, k, C].

    float16, bfloat16, float32 and float64 keep their dtype. The backward pass adds up in the order of `indices`, in
    float32 for the half types, so it is deterministic. Raises ValueError for wrong shapes and, on the CPU, for an index
    outside of 0..N-1; on a GPU, where that look would wait, such a row is NaN and its gradient counts nowhere. Raises
    TypeError for other dtypes.
    """
    require_floating(_OP, "features", features)
    require_tensor(_OP, "indices", indices)
    if features.dim() != 3:
        raise ValueError(f"{_OP}: features must have shape [B, N, C], got {shape_of(features)}")
    if indices.dtype != torch.int64:
        raise TypeError(f"{_OP}: indices must be int64, got {indices.dtype}")
    if indices.dim() != 3:
        raise ValueError(f"{_OP}: indices must have shape [B, G, k], got {shape_of(indices)}")
    require_same(_OP, "features", features, "indices", indices)
    out: Tensor = torch.ops.jointmae.group(features, indices)
    return out


def _check_values(indices: Tensor, N: int) -> None:
    if indices.numel() == 0 or not values_are_checked(indices):
        return
    for index in (int(indices.min()), int(indices.max())):
        if not 0 <= index < N:
            raise ValueError(f"{_OP}: indices must be in [0, N={N}), got {index}")


def _reference(features: Tensor, indices: Tensor) -> Tensor:
    _check_values(indices, features.shape[1])
    return reference.group(features, indices)


def _cpu(features: Tensor, indices: Tensor) -> Tensor:
    features, indices = features.contiguous(), indices.contiguous()
    B, N, C = features.shape
    out = _fake(features, indices, native.new_empty)
    assert kernels is not None
    kernels.group_cpu(  # looks at the indices
        address(features),
        address(indices),
        address(out),
        B,
        N,
        indices.shape[1] * indices.shape[2],
        C * features.element_size(),
        torch.get_num_threads(),
    )
    return out


def _cuda(features: Tensor, indices: Tensor) -> Tensor:
    _check_values(indices, features.shape[1])
    features, indices = features.contiguous(), indices.contiguous()
    B, N, C = features.shape
    out = _fake(features, indices)
    assert native.cuda is not None
    native.cuda.group_cuda(
        address(features),
        address(indices),
        address(out),
        B,
        N,
        indices.shape[1] * indices.shape[2],
        C * features.element_size(),
        *native.stream_of(features),
    )
    return out


def _fake(features: Tensor, indices: Tensor, new_empty: NewEmpty = Tensor.new_empty) -> Tensor:
    return new_empty(features, *indices.shape, features.shape[2])


def _backward_reference(grad: Tensor, indices: Tensor, N: int) -> Tensor:
    _check_values(indices, N)
    return reference.group_backward(grad, indices, N)


def _backward_cpu(grad: Tensor, indices: Tensor, N: int) -> Tensor:
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    indices = indices.contiguous()
    grad_features = native.new_empty(grad, grad.shape[0], N, grad.shape[3], dtype=dtype)
    grad_in_dtype = grad.to(dtype).contiguous()
    assert kernels is not None
    kernels.group_backward_cpu(
        address(grad_in_dtype),
        address(indices),
        address(grad_features),
        grad.shape[0],
        N,
        indices.shape[1] * indices.shape[2],
        grad.shape[3],
        dtype == torch.float64,
        torch.get_num_threads(),
    )
    return grad_features.to(grad.dtype)


def _backward_cuda(grad: Tensor, indices: Tensor, N: int) -> Tensor:
    B, G, k, C = grad.shape
    if max(G * k, N) >= _INT32_COUNTS:
        return _backward_reference(grad, indices, N)
    _check_values(indices, N)
    grad, indices = grad.contiguous(), indices.contiguous()
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    assert native.cuda is not None
    workspace = grad.new_empty(native.cuda.inverse_index_size(B, G * k, N), dtype=torch.int32)
    grad_features = grad.new_empty(B, N, C, dtype=dtype)
    native.cuda.group_backward_cuda(
        address(grad),
        address(indices),
        address(workspace),
        address(grad_features),
        B,
        N,
        G * k,
        C,
        _GRAD_TYPES.index(grad.dtype),
        *native.stream_of(grad),
    )
    return grad_features.to(grad.dtype)


def _backward_fake(grad: Tensor, indices: Tensor, N: int) -> Tensor:
    return grad.new_empty(grad.shape[0], N, grad.shape[3])


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    features, indices = inputs
    ctx.save_for_backward(indices)
    ctx.N = features.shape[1]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (indices,) = ctx.saved_tensors
    return torch.ops.jointmae.group_backward(grad, indices, ctx.N), None


define(
    "group(Tensor features, Tensor indices) -> Tensor",
    reference=_reference,
    cpu=_cpu,
    cuda=_cuda,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
define(
    "group_backward(Tensor grad, Tensor indices, SymInt N) -> Tensor",
    reference=_backward_reference,
    cpu=_backward_cpu,
    cuda=_backward_cuda,
    fake=_backward_fake,
)
