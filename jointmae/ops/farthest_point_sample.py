"""Farthest point sampling (Eldar et al. 1997; Qi et al. 2017, section 3.2). B clouds, N points, M samples."""

from __future__ import annotations

import torch
from torch import Tensor

from jointmae.ops import native, reference
from jointmae.ops.checks import (
    as_kernel_input,
    require_count,
    require_finite,
    require_int,
    require_length_values,
    require_lengths,
    require_points,
)
from jointmae.ops.native import address, kernels
from jointmae.ops.registry import define

_OP = "farthest_point_sample"
_CPU_PATH = 0  # 0 chooses by size; tests force 1, every point in every step, and 2, boxes (farthest_point_sample.h)
_PATH = 0  # of the CUDA kernels: 0 chooses by size; tests force the others (farthest_point_sample.h)


def farthest_point_sample(points: Tensor, num_samples: int, start: int = 0, lengths: Tensor | None = None) -> Tensor:
    """Indices [B, num_samples] int64 of points [B, N, 3], each the farthest from the ones chosen before it.

    Greedy and exact. The first is `start`, ties go to the lowest index, and the first m of M samples are the m samples.
    Once every remaining distance is 0 the lowest index of distance 0 (index 0) is returned each time. With `lengths`
    [B] int64, only the first lengths[b] points of cloud b exist. B = 0 gives an empty result.

    Raises ValueError unless 1 <= num_samples <= N (and <= every length) and 0 <= start < N (and < every length), and,
    on the CPU, if a coordinate is not finite. Raises TypeError for integer points.
    """
    require_points(_OP, "points", points)
    require_count(_OP, "num_samples", num_samples, "N", points.shape[1])
    require_int(_OP, "start", start)
    if not 0 <= start < points.shape[1]:
        raise ValueError(f"{_OP}: start must be in [0, N={points.shape[1]}), got {start}")
    require_lengths(_OP, "lengths", lengths, points)
    (points,) = as_kernel_input(points)
    indices: Tensor = torch.ops.jointmae.farthest_point_sample(points, num_samples, start, lengths)
    return indices


def _check_values(points: Tensor, num_samples: int, start: int, lengths: Tensor | None) -> None:
    require_finite(_OP, "points", points)
    require_length_values(_OP, "lengths", lengths, points.shape[1], at_least=max(num_samples, start + 1))


def _reference(points: Tensor, num_samples: int, start: int, lengths: Tensor | None) -> Tensor:
    _check_values(points, num_samples, start, lengths)
    return reference.farthest_point_sample(points, num_samples, start, lengths)


def _cpu(points: Tensor, num_samples: int, start: int, lengths: Tensor | None) -> Tensor:
    _check_values(points, num_samples, start, lengths)
    points = points.contiguous()
    lengths = None if lengths is None else lengths.contiguous()
    B, N, _ = points.shape
    indices = torch.empty(B, num_samples, dtype=torch.int64)
    assert kernels is not None
    kernels.farthest_point_sample_cpu(
        address(points),
        address(lengths),
        address(indices),
        B,
        N,
        num_samples,
        start,
        _CPU_PATH,
        points.dtype == torch.float64,
        torch.get_num_threads(),
    )
    return indices


def _cuda(points: Tensor, num_samples: int, start: int, lengths: Tensor | None) -> Tensor:
    if points.dtype == torch.float64:
        return _reference(points, num_samples, start, lengths)
    _check_values(points, num_samples, start, lengths)
    points = points.contiguous()
    lengths = None if lengths is None else lengths.contiguous()
    B, N, _ = points.shape
    indices = points.new_empty(B, num_samples, dtype=torch.int64)
    assert native.cuda is not None
    workspace_bytes = native.cuda.farthest_point_sample_workspace_cuda(N, _PATH)
    workspace = points.new_empty(workspace_bytes, dtype=torch.uint8)
    native.cuda.farthest_point_sample_cuda(
        address(points),
        address(lengths),
        address(indices),
        address(workspace),
        B,
        N,
        num_samples,
        start,
        _PATH,
        *native.stream_of(points),
    )
    return indices


def _fake(points: Tensor, num_samples: int, start: int, lengths: Tensor | None) -> Tensor:
    return points.new_empty(points.shape[0], num_samples, dtype=torch.int64)


define(
    "farthest_point_sample(Tensor points, int num_samples, int start, Tensor? lengths) -> Tensor",
    reference=_reference,
    cpu=_cpu,
    cuda=_cuda,
    fake=_fake,
)
