"""group, forward and backward, against gathers; and sampling and grouping as one, the first step of the encoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.clouds import clouds
from benchmarks.peers import peers_of
from benchmarks.timing import rotated, with_backward, within
from jointmae import ops
from jointmae.ops import reference

WORKLOADS = [(128, 1024, 128, 32, 3), (32, 2048, 256, 32, 96), (32, 8192, 1024, 16, 3)]
SAMPLED = [(128, 1024, 128, 32), (32, 2048, 256, 32), (32, 8192, 1024, 16)]


def _advanced_indexing(features: Tensor, indices: Tensor) -> Tensor:
    return features[torch.arange(features.shape[0], device=features.device)[:, None, None], indices]


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize(("B", "N", "G", "k", "C"), WORKLOADS)
def bench_group(compare, device, B, N, G, k, C, backward):
    make = lambda: (torch.randn(B, N, C, device=device), torch.randint(N, (B, G, k), device=device))  # noqa: E731
    candidates = {
        "jointmae": ops.group,
        "reference": reference.group,
        "torch advanced indexing": _advanced_indexing,
    }
    gathered, cloud = B * G * k * (8.0 + 4 * C), 4.0 * B * N * C
    compare(
        f"group{' + backward' if backward else ''} B{B} N{N} {G}x{k} C{C}",
        candidates,
        rotated(make, device),
        rivals=peers_of("group", device),
        wrap=with_backward if backward else lambda call: call,
        check=within(1e-5) if backward else within(0),
        num_bytes=(gathered + cloud) * (2 if backward else 1),
    )


def _sample_and_group(points: Tensor, num_samples: int, k: int) -> tuple[Tensor, Tensor]:
    indices = ops.farthest_point_sample(points, num_samples)
    return indices, ops.knn(ops.group(points, indices[..., None]).squeeze(2), points, k)[1]


def _reference(points: Tensor, num_samples: int, k: int) -> tuple[Tensor, Tensor]:
    indices = reference.farthest_point_sample(points, num_samples, 0, None)
    return indices, reference.knn(reference.group(points, indices[..., None]).squeeze(2), points, k, None)[1]


@pytest.mark.parametrize(("B", "N", "M", "k"), SAMPLED)
def bench_sample_and_group(compare, device, quick, B, N, M, k):
    if quick and N > 2048:
        pytest.skip("a large workload: run without --quick")
    candidates = {"jointmae": _sample_and_group}
    if B * N * M <= (2**24 if quick else 2**28):  # it takes seconds beyond
        candidates["reference"] = _reference
    compare(
        f"sample_and_group B{B} N{N}->{M} k{k}",
        candidates,
        rotated(lambda: (clouds(B, N, device), M, k), device),
        rivals=peers_of("sample_and_group", device, B * N * M),
        check=_agreement,
        num_bytes=12.0 * B * N + 8.0 * B * M * (1 + k),
        flops=17.0 * B * N * M,
        lane_ops=18.0 * B * N * M,
    )


def _agreement(result: tuple[Tensor, Tensor], ours: tuple[Tensor, Tensor]) -> str:
    """Samplers part at ties that they round otherwise, but most clouds of a batch have none."""
    samples, neighbors = ((a != b).float().mean().item() for a, b in zip(result, ours, strict=True))
    assert samples < 0.5, f"{samples:.0%} of the samples differ"
    return f"{samples:.1e} of samples, {neighbors:.1e} of neighbours differ" if samples or neighbors else "="
