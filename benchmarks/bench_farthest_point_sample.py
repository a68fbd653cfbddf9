"""farthest_point_sample against QuickFPS (fpsample, torch-quickfps), torch-fps, torch-cluster, pytorch3d and others.

Two exact samplers part for good at the first tie that they round otherwise, so rivals are checked by how far their
samples lie apart; their rows say how many indices differ.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks.clouds import clouds
from benchmarks.peers import peers_of
from benchmarks.timing import rotated
from jointmae import ops
from jointmae.ops import reference

WORKLOADS = [(32, 1024, 128), (128, 1024, 128), (32, 2048, 256), (128, 2048, 256), (128, 256, 64), (32, 8192, 1024)]
SCENES = [(1, 100_000, 4096), (1, 1_000_000, 2048)]


@pytest.mark.parametrize(("B", "N", "M"), WORKLOADS + SCENES)
def bench_farthest_point_sample(compare, device, quick, B, N, M):
    if quick and N > 8192:
        pytest.skip("a large workload: run without --quick")
    inputs = rotated(lambda: (clouds(B, N, device), M), device)
    candidates = {"jointmae": ops.farthest_point_sample}
    if B * N * M <= (2**24 if quick else 2**28):  # the loop in PyTorch takes seconds beyond
        candidates["reference"] = lambda points, num_samples: reference.farthest_point_sample(
            points, num_samples, 0, None
        )
    compare(
        f"farthest_point_sample B{B} N{N}->{M}",
        candidates,
        inputs,
        rivals=peers_of("farthest_point_sample", device, B * N * M),
        check=partial(_agreement, inputs[0][0]),
        num_bytes=12.0 * B * N + 8.0 * B * M,
        flops=9.0 * B * N * M,
        cycles=partial(_cycles, B, N, M),
    )


def _cycles(B: int, N: int, M: int, num_sms: int) -> float:
    """Each of M steps waits for the last: ten instructions a point on 128 lanes, then a block's or a grid's barrier."""
    a_block_a_cloud = -(-B // num_sms) * M * (150 + 10 * N / 128)
    all_blocks_a_cloud = B * M * (2400 + 10 * N / 128 / num_sms)
    return min(a_block_a_cloud, all_blocks_a_cloud)


def _agreement(points: Tensor, result: Tensor, ours: Tensor) -> str:
    if result.is_floating_point():  # the points themselves
        torch.testing.assert_close(_spacing(result), _spacing(_samples(points, ours)), rtol=0.1, atol=0)
        return "as far apart"
    differing = (result != ours).sum().item()
    if differing:
        torch.testing.assert_close(
            _spacing(_samples(points, result)), _spacing(_samples(points, ours)), rtol=0.1, atol=0
        )
    return f"{differing / ours.numel():.1%} of indices differ, as far apart" if differing else "="


def _samples(points: Tensor, indices: Tensor) -> Tensor:
    return points.gather(1, indices[..., None].expand(-1, -1, 3))


def _spacing(samples: Tensor) -> Tensor:
    """The least distance between two samples of a cloud: greedy sampling's radius, whatever the samples' order."""
    distances = torch.cdist(samples, samples, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.diagonal_scatter(distances.new_full(distances.shape[:2], torch.inf), 0, 1, 2).amin((1, 2)).mean()
