"""k nearest neighbours. B clouds, N points, M queries, k neighbours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jointmae.ops import native, reference
from jointmae.ops.checks import (
    as_kernel_input,
    require_count,
    require_finite,
    require_length_values,
    require_lengths,
    require_points,
    require_same,
)
from jointmae.ops.native import NewEmpty, address, kernels
from jointmae.ops.registry import define

_OP = "knn"
_PATH = 0  # of the CUDA kernels: chosen by size; tests force one
_CPU_PATH = 0  # likewise


def knn(queries: Tensor, points: Tensor, k: int, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k nearest of `points` [B, N, 3] for each of `queries` [B, M, 3]: squared distances and indices, [B, M, k].

    Exact: direct differences, nearest first, ties to the lowest index (int64). Distances (float64 for float64 inputs,
    else float32) are differentiable with respect to both. With `lengths` [B] int64, only the first lengths[b] points of
    cloud b exist. B = 0 gives an empty result.

    Raises ValueError unless 1 <= k <= N (and <= every length), and, on the CPU, if a coordinate is not finite. Raises
    TypeError for integer points.
    """
    require_points(_OP, "queries", queries)
    require_points(_OP, "points", points)
    require_same(_OP, "queries", queries, "points", points)
    require_count(_OP, "k", k, "N", points.shape[1])
    require_lengths(_OP, "lengths", lengths, points)
    queries, points = as_kernel_input(queries, points)
    sq_dists, indices = torch.ops.jointmae.knn(queries, points, k, lengths)
    return sq_dists, indices


def _check_values(queries: Tensor, points: Tensor, k: int, lengths: Tensor | None) -> None:
    require_finite(_OP, "queries", queries)
    require_finite(_OP, "points", points)
    require_length_values(_OP, "lengths", lengths, points.shape[1], at_least=k)


def _reference(queries: Tensor, points: Tensor, k: int, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    _check_values(queries, points, k, lengths)
    return reference.knn(queries, points, k, lengths)


def _cpu(queries: Tensor, points: Tensor, k: int, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    _check_values(queries, points, k, lengths)
    queries, points = queries.contiguous(), points.contiguous()
    lengths = None if lengths is None else lengths.contiguous()
    B, M, _ = queries.shape
    sq_dists, indices = _fake(queries, points, k, lengths, native.new_empty)
    assert kernels is not None
    kernels.knn_cpu(
        address(queries),
        address(points),
        address(lengths),
        address(sq_dists),
        address(indices),
        B,
        M,
        points.shape[1],
        k,
        _CPU_PATH,
        points.dtype == torch.float64,
        torch.get_num_threads(),
    )
    return sq_dists, indices


def _cuda(queries: Tensor, points: Tensor, k: int, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    if points.dtype == torch.float64:
        return _reference(queries, points, k, lengths)
    _check_values(queries, points, k, lengths)
    queries, points = queries.contiguous(), points.contiguous()
    lengths = None if lengths is None else lengths.contiguous()
    B, M, _ = queries.shape
    N = points.shape[1]
    sq_dists, indices = _fake(queries, points, k, lengths)
    assert native.cuda is not None
    workspace = points.new_empty(native.cuda.knn_workspace_cuda(B, M, N, k, _PATH), dtype=torch.uint8)
    native.cuda.knn_cuda(
        address(queries),
        address(points),
        address(lengths),
        address(workspace),
        address(sq_dists),
        address(indices),
        B,
        M,
        N,
        k,
        _PATH,
        *native.stream_of(points),
    )
    return sq_dists, indices


def _fake(
    queries: Tensor, points: Tensor, k: int, lengths: Tensor | None, new_empty: NewEmpty = Tensor.new_empty
) -> tuple[Tensor, Tensor]:
    shape = (*queries.shape[:2], k)
    return new_empty(queries, *shape), new_empty(queries, *shape, dtype=torch.int64)


def _backward_cpu(grad_sq_dists: Tensor, queries: Tensor, points: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    grad_sq_dists, indices = grad_sq_dists.contiguous(), indices.contiguous()
    queries, points = queries.contiguous(), points.contiguous()
    B, M, k = indices.shape
    grad_queries, grad_points = _backward_fake(grad_sq_dists, queries, points, indices)
    assert kernels is not None
    kernels.knn_backward_cpu(
        address(grad_sq_dists),
        address(queries),
        address(points),
        address(indices),
        address(grad_queries),
        address(grad_points),
        B,
        M,
        points.shape[1],
        k,
        points.dtype == torch.float64,
        torch.get_num_threads(),
    )
    return grad_queries, grad_points


def _backward_cuda(grad_sq_dists: Tensor, queries: Tensor, points: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    B, M, k = indices.shape
    N = points.shape[1]
    if points.dtype == torch.float64 or M * k >= 2**31:
        add_up = torch.ops.jointmae.group_backward  # has a kernel for float64: `scatter_add` adds up in any order
        return reference.knn_backward(grad_sq_dists, queries, points, indices, add_up)
    grad_sq_dists, indices = grad_sq_dists.contiguous(), indices.contiguous()
    queries, points = queries.contiguous(), points.contiguous()
    grad_queries, grad_points = _backward_fake(grad_sq_dists, queries, points, indices)
    assert native.cuda is not None
    workspace = indices.new_empty(native.cuda.inverse_index_size(B, M * k, N), dtype=torch.int32)
    native.cuda.knn_backward_cuda(
        address(grad_sq_dists),
        address(queries),
        address(points),
        address(indices),
        address(workspace),
        address(grad_queries),
        address(grad_points),
        B,
        M,
        N,
        k,
        *native.stream_of(points),
    )
    return grad_queries, grad_points


def _backward_fake(grad_sq_dists: Tensor, queries: Tensor, points: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    return queries.new_empty(queries.shape), points.new_empty(points.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    queries, points, _, _ = inputs
    _, indices = output
    ctx.save_for_backward(queries, points, indices)


def _backward(ctx: Any, grad_sq_dists: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
    grad_queries, grad_points = torch.ops.jointmae.knn_backward(grad_sq_dists, *ctx.saved_tensors)
    return grad_queries, grad_points, None, None


define(
    "knn(Tensor queries, Tensor points, int k, Tensor? lengths) -> (Tensor, Tensor)",
    reference=_reference,
    cpu=_cpu,
    cuda=_cuda,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
define(
    "knn_backward(Tensor grad_sq_dists, Tensor queries, Tensor points, Tensor indices) -> (Tensor, Tensor)",
    reference=reference.knn_backward,
    cpu=_backward_cpu,
    cuda=_backward_cuda,
    fake=_backward_fake,
)
