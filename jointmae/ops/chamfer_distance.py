"""Chamfer distance (Fan et al. 2017). B pairs of clouds x, y of N and M points."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from jointmae.ops import native, reference
from jointmae.ops.checks import (
    as_kernel_input,
    require_finite,
    require_length_values,
    require_lengths,
    require_points,
    require_same,
)
from jointmae.ops.native import address, kernels
from jointmae.ops.registry import define

_OP = "chamfer_distance"
_NORMS = ("l2", "l1")
_REDUCTIONS = ("mean", "sum", "none")
_PATH = 0  # which CUDA kernels: 0 by size, 1 those for large clouds
_CPU_PATH = 0  # 0 by size, 1 many pairs at once, 2 every point against every other, 3 boxes


@overload
def chamfer_distance(
    x: Tensor,
    y: Tensor,
    norm: Literal["l2", "l1"] = ...,
    reduction: Literal["mean", "sum"] = ...,
    lengths_x: Tensor | None = ...,
    lengths_y: Tensor | None = ...,
) -> Tensor: ...


@overload
def chamfer_distance(
    x: Tensor,
    y: Tensor,
    norm: Literal["l2", "l1"] = ...,
    *,
    reduction: Literal["none"],
    lengths_x: Tensor | None = ...,
    lengths_y: Tensor | None = ...,
) -> tuple[Tensor, Tensor]: ...


def chamfer_distance(
    x: Tensor,
    y: Tensor,
    norm: Literal["l2", "l1"] = "l2",
    reduction: Literal["mean", "sum", "none"] = "mean",
    lengths_x: Tensor | None = None,
    lengths_y: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """How far each point of `x` [B, N, 3] is from the nearest of `y` [B, M, 3], plus the same the other way.

    "l2" takes squared distances, "l1" their square roots (gradient 0 where the distance is 0). "mean" averages over the
    points of each cloud, then over the batch, and adds both ways without halving; "sum" adds all up; "none" gives the
    pair d_xy [B, N], d_yx [B, M]. With `lengths_x`, `lengths_y` [B] int64, only the first points of each cloud exist;
    the rest is 0 in "none" and counts nowhere. Differentiable with respect to x and y, deterministic. B = 0 gives empty
    tensors, sum 0 and, like `Tensor.mean`, mean NaN.

    Raises ValueError for an empty cloud and, on the CPU, if a coordinate is not finite. Raises TypeError for integer
    points.
    """
    require_points(_OP, "x", x)
    require_points(_OP, "y", y)
    require_same(_OP, "x", x, "y", y)
    require_lengths(_OP, "lengths_x", lengths_x, x)
    require_lengths(_OP, "lengths_y", lengths_y, y)
    if norm not in _NORMS:
        raise ValueError(f"{_OP}: norm must be one of {_NORMS}, got {norm!r}")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{_OP}: reduction must be one of {_REDUCTIONS}, got {reduction!r}")
    x, y = as_kernel_input(x, y)
    d_xy, d_yx, _, _ = torch.ops.jointmae.chamfer_distance(x, y, lengths_x, lengths_y)
    if norm == "l1":
        d_xy, d_yx = _safe_sqrt(d_xy), _safe_sqrt(d_yx)
    if reduction == "none":
        return d_xy, d_yx
    if reduction == "sum":
        total: Tensor = d_xy.sum() + d_yx.sum()
        return total
    mean: Tensor = _mean(d_xy, lengths_x) + _mean(d_yx, lengths_y)
    return mean


def _safe_sqrt(values: Tensor) -> Tensor:
    """The square root, with gradient 0 instead of infinity at 0."""
    positive = values > 0
    return torch.where(positive, torch.where(positive, values, 1).sqrt(), 0)


def _mean(values: Tensor, lengths: Tensor | None) -> Tensor:
    if lengths is None:
        return values.sum() / values.numel()  # not `mean`, whose backward fills a tensor of this shape
    return (values.sum(1) / lengths).mean()


def _check_values(x: Tensor, y: Tensor, lengths_x: Tensor | None, lengths_y: Tensor | None) -> None:
    require_finite(_OP, "x", x)
    require_finite(_OP, "y", y)
    require_length_values(_OP, "lengths_x", lengths_x, x.shape[1])
    require_length_values(_OP, "lengths_y", lengths_y, y.shape[1])


def _reference(
    x: Tensor, y: Tensor, lengths_x: Tensor | None, lengths_y: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_values(x, y, lengths_x, lengths_y)
    return reference.chamfer_distance(x, y, lengths_x, lengths_y)


def _cpu(
    x: Tensor, y: Tensor, lengths_x: Tensor | None, lengths_y: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_values(x, y, lengths_x, lengths_y)
    x, y = x.contiguous(), y.contiguous()
    lengths_x = None if lengths_x is None else lengths_x.contiguous()
    lengths_y = None if lengths_y is None else lengths_y.contiguous()
    d_xy, d_yx, index_xy, index_yx = _fake(x, y, lengths_x, lengths_y)
    assert kernels is not None
    kernels.chamfer_distance_cpu(
        address(x),
        address(y),
        address(lengths_x),
        address(lengths_y),
        address(d_xy),
        address(d_yx),
        address(index_xy),
        address(index_yx),
        x.shape[0],
        x.shape[1],
        y.shape[1],
        _CPU_PATH,
        x.dtype == torch.float64,
        torch.get_num_threads(),
    )
    return d_xy, d_yx, index_xy, index_yx


def _cuda(
    x: Tensor, y: Tensor, lengths_x: Tensor | None, lengths_y: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if x.dtype == torch.float64:
        return _reference(x, y, lengths_x, lengths_y)
    _check_values(x, y, lengths_x, lengths_y)
    x, y = x.contiguous(), y.contiguous()
    lengths_x = None if lengths_x is None else lengths_x.contiguous()
    lengths_y = None if lengths_y is None else lengths_y.contiguous()
    d_xy, d_yx, index_xy, index_yx = _fake(x, y, lengths_x, lengths_y)
    B, N, M = x.shape[0], x.shape[1], y.shape[1]
    assert native.cuda is not None
    keys = x.new_full((native.cuda.chamfer_distance_keys(B, N, M, _PATH),), -1, dtype=torch.int64)
    native.cuda.chamfer_distance_cuda(
        address(x),
        address(y),
        address(lengths_x),
        address(lengths_y),
        address(d_xy),
        address(d_yx),
        address(index_xy),
        address(index_yx),
        address(keys),
        B,
        N,
        M,
        _PATH,
        *native.stream_of(x),
    )
    return d_xy, d_yx, index_xy, index_yx


def _fake(
    x: Tensor, y: Tensor, lengths_x: Tensor | None, lengths_y: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_xy, d_yx = x.new_empty(x.shape[:2]), y.new_empty(y.shape[:2])
    return d_xy, d_yx, d_xy.new_empty(d_xy.shape, dtype=torch.int64), d_yx.new_empty(d_yx.shape, dtype=torch.int64)


def _backward_cpu(
    grad_d_xy: Tensor,
    grad_d_yx: Tensor,
    x: Tensor,
    y: Tensor,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    index_xy: Tensor,
    index_yx: Tensor,
) -> tuple[Tensor, Tensor]:
    (grad_d_xy, step_xy), (grad_d_yx, step_yx) = _with_step(grad_d_xy), _with_step(grad_d_yx)
    x, y, index_xy, index_yx = x.contiguous(), y.contiguous(), index_xy.contiguous(), index_yx.contiguous()
    lengths_x = None if lengths_x is None else lengths_x.contiguous()
    lengths_y = None if lengths_y is None else lengths_y.contiguous()
    grad_x, grad_y = torch.empty_like(x), torch.empty_like(y)
    assert kernels is not None
    kernels.chamfer_distance_backward_cpu(
        address(grad_d_xy),
        address(grad_d_yx),
        step_xy,
        step_yx,
        address(x),
        address(y),
        address(lengths_x),
        address(lengths_y),
        address(index_xy),
        address(index_yx),
        address(grad_x),
        address(grad_y),
        x.shape[0],
        x.shape[1],
        y.shape[1],
        x.dtype == torch.float64,
        torch.get_num_threads(),
    )
    return grad_x, grad_y


def _with_step(grad: Tensor) -> tuple[Tensor, int]:
    """What a kernel reads, and the step from number to number: 0 where all are one, as under a sum."""
    if grad.numel() > 0 and not any(grad.stride()):
        return grad[:1, :1], 0
    return grad.contiguous(), 1


def _backward_cuda(
    grad_d_xy: Tensor,
    grad_d_yx: Tensor,
    x: Tensor,
    y: Tensor,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    index_xy: Tensor,
    index_yx: Tensor,
) -> tuple[Tensor, Tensor]:
    if x.dtype == torch.float64:
        saved = (x, y, lengths_x, lengths_y, index_xy, index_yx)
        add_up = torch.ops.jointmae.group_backward  # has a kernel for float64: `scatter_add` adds up in any order
        return reference.chamfer_distance_backward(grad_d_xy, grad_d_yx, *saved, add_up)
    grad_d_xy, grad_d_yx = grad_d_xy.contiguous(), grad_d_yx.contiguous()
    x, y, index_xy, index_yx = x.contiguous(), y.contiguous(), index_xy.contiguous(), index_yx.contiguous()
    lengths_x = None if lengths_x is None else lengths_x.contiguous()
    lengths_y = None if lengths_y is None else lengths_y.contiguous()
    grad_x, grad_y = torch.empty_like(x), torch.empty_like(y)
    B, N, M = x.shape[0], x.shape[1], y.shape[1]
    assert native.cuda is not None
    size = native.cuda.chamfer_distance_backward_workspace(B, N, M, _PATH)
    workspace = x.new_empty(size, dtype=torch.int32)
    native.cuda.chamfer_distance_backward_cuda(
        address(grad_d_xy),
        address(grad_d_yx),
        address(x),
        address(y),
        address(lengths_x),
        address(lengths_y),
        address(index_xy),
        address(index_yx),
        address(grad_x),
        address(grad_y),
        address(workspace),
        B,
        N,
        M,
        _PATH,
        *native.stream_of(x),
    )
    return grad_x, grad_y


def _backward_fake(
    grad_d_xy: Tensor,
    grad_d_yx: Tensor,
    x: Tensor,
    y: Tensor,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    index_xy: Tensor,
    index_yx: Tensor,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), y.new_empty(y.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, index_xy, index_yx = output
    ctx.save_for_backward(*inputs, index_xy, index_yx)


def _backward(ctx: Any, grad_d_xy: Tensor, grad_d_yx: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, None, None]:
    grad_x, grad_y = torch.ops.jointmae.chamfer_distance_backward(grad_d_xy, grad_d_yx, *ctx.saved_tensors)
    return grad_x, grad_y, None, None


define(
    "chamfer_distance(Tensor x, Tensor y, Tensor? lengths_x, Tensor? lengths_y) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=_reference,
    cpu=_cpu,
    cuda=_cuda,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
define(
    "chamfer_distance_backward(Tensor grad_d_xy, Tensor grad_d_yx, Tensor x, Tensor y, Tensor? lengths_x, "
    "Tensor? lengths_y, Tensor index_xy, Tensor index_yx) -> (Tensor, Tensor)",
    reference=reference.chamfer_distance_backward,
    cpu=_backward_cpu,
    cuda=_backward_cuda,
    fake=_backward_fake,
)
