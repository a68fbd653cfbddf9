"""chamfer_distance, forward and with backward, against kd-trees, faiss, pytorch3d, chamferdist and compositions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.clouds import clouds
from benchmarks.peers import peers_of
from benchmarks.timing import rotated, with_backward, within
from jointmae import ops
from jointmae.ops import reference

WORKLOADS = [(32, 2048), (128, 1024), (1536, 32), (6144, 32), (6144, 16)]
SCENES = [(1, 100_000)]


def _reference(x: Tensor, y: Tensor) -> Tensor:
    d_xy, d_yx, _, _ = reference.chamfer_distance(x, y, None, None)
    return d_xy.mean() + d_yx.mean()


def _cdist(x: Tensor, y: Tensor) -> Tensor:
    distances = torch.cdist(x, y) ** 2
    return distances.amin(1).mean() + distances.amin(2).mean()


def _expansion(x: Tensor, y: Tensor) -> Tensor:
    distances = (x * x).sum(-1)[:, :, None] + (y * y).sum(-1)[:, None] - 2 * torch.bmm(x, y.transpose(1, 2))
    return distances.amin(1).mean() + distances.amin(2).mean()


def _candidates(B: int, N: int, largest: int) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    candidates = {"jointmae": ops.chamfer_distance}
    if B * N * N <= largest:  # they take seconds and gigabytes beyond
        candidates |= {"reference": _reference, "torch cdist": _cdist, "torch bmm expansion": _expansion}
    return candidates


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize(("B", "N"), WORKLOADS + SCENES)
def bench_chamfer_distance(compare, device, quick, B, N, backward):
    if quick and (B * N * N > 2**27 or (backward and N > 32)):
        pytest.skip("a large workload: run without --quick")
    rivals = peers_of("chamfer_distance", device, B * N * N)
    if N <= 64:  # searches that go cloud by cloud take seconds for thousands of them
        rivals = [rival for rival in rivals if not rival.name.endswith("both ways")]
    compare(
        f"chamfer_distance{' + backward' if backward else ''} B{B} {N}x{N}",
        _candidates(B, N, 2**23 if quick else 2**27),
        rotated(lambda: (clouds(B, N, device), clouds(B, N, device)), device),
        rivals=rivals,
        wrap=with_backward if backward else lambda call: call,
        check=within(2e-2),  # the compositions work by x^2 + y^2 - 2xy
        num_bytes=(72.0 if backward else 24.0) * B * N,
        flops=8.0 * B * N * N if N < 100_000 else None,
        lane_ops=12.0 * B * N * N if N < 100_000 else None,
    )
