"""knn, forward and backward, against kd-trees, torch-cluster, pytorch3d and cdist + topk in PyTorch.

Checked by the distances of the points that are found, as the k-th may tie; rows say how many indices differ.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks.clouds import clouds
from benchmarks.peers import peers_of
from benchmarks.timing import rotated, with_backward, within
from jointmae import ops
from jointmae.ops import reference

WORKLOADS = [
    (128, 128, 1024, 32),
    (32, 256, 2048, 32),
    (128, 64, 256, 8),
    (32, 1024, 8192, 16),
    (32, 2048, 2048, 16),
]
SCENES = [(1, 100_000, 100_000, 16), (1, 20_000, 1_000_000, 16)]


def _cdist_topk(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, indices = torch.cdist(queries, points).topk(k, largest=False)
    return values**2, indices


def _reference(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return reference.knn(queries, points, k, None)


def _differentiable_reference(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    _, indices = _reference(queries.detach(), points.detach(), k)
    return (queries[:, :, None] - reference.group(points, indices)).square().sum(-1), indices


def _inputs(B: int, M: int, N: int, k: int, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """The queries are points of the cloud, as the centres of groups are."""
    points = clouds(B, N, device)
    return points[:, torch.randperm(N, device=device)[:M]].contiguous(), points, k


@pytest.mark.parametrize(("B", "M", "N", "k"), WORKLOADS + SCENES)
def bench_knn(compare, device, quick, B, M, N, k):
    if quick and B * M * N > 2**27:
        pytest.skip("a large workload: run without --quick")
    inputs = rotated(lambda: _inputs(B, M, N, k, device), device)
    candidates = {"jointmae": ops.knn}
    if B * M * N <= (2**24 if quick else 2**28):  # they take seconds and gigabytes beyond
        candidates |= {"reference": _reference, "torch cdist+topk": _cdist_topk}
    compare(
        f"knn B{B} {M}q/{N} k{k}",
        candidates,
        inputs,
        rivals=peers_of("knn", device, B * M * N),
        check=partial(_agreement, *inputs[0][:2]),
        num_bytes=12.0 * B * (M + N + M * k),
        flops=8.0 * B * M * N if N < 100_000 else None,
        lane_ops=8.0 * B * M * N if N < 100_000 else None,
    )


@pytest.mark.parametrize(("B", "M", "N", "k"), WORKLOADS[:3])
def bench_knn_backward(compare, device, quick, B, M, N, k):
    if quick and B * M * N > 2**22:
        pytest.skip("a large workload: run without --quick")
    compare(
        f"knn + backward B{B} {M}q/{N} k{k}",
        {"jointmae": ops.knn, "reference": _differentiable_reference, "torch cdist+topk": _cdist_topk},
        rotated(lambda: _inputs(B, M, N, k, device), device),
        rivals=[rival for rival in peers_of("knn", device, B * M * N) if rival.name == "pytorch3d"],  # it has gradients
        wrap=with_backward,
        check=within(1e-2),  # cdist works by x^2 + y^2 - 2xy
        num_bytes=24.0 * B * (M + N + M * k),
        flops=8.0 * B * M * N,
        lane_ops=8.0 * B * M * N,
    )


def _agreement(
    queries: Tensor, points: Tensor, result: tuple[Tensor | None, Tensor], ours: tuple[Tensor, Tensor]
) -> str:
    distances, indices = result
    found = points.gather(1, indices.flatten(1)[..., None].expand(-1, -1, 3)).unflatten(1, indices.shape[1:])
    exact = (found - queries[:, :, None]).square().sum(-1)
    torch.testing.assert_close(exact.sort(-1).values, ours[0], rtol=1e-3, atol=1e-5)  # cdist: x^2 + y^2 - 2xy
    if distances is not None:
        torch.testing.assert_close(distances, exact, rtol=1e-3, atol=1e-5)
    differing = (indices != ours[1]).sum().item()
    return f"{differing:,} of {indices.numel():,} indices differ" if differing else "="
