"""knn_interpolate, forward and backward, against the reference, cdist + topk, pytorch3d and pointnet2_ops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.clouds import clouds
from benchmarks.peers import peers_of
from benchmarks.timing import rotated
from jointmae import ops
from jointmae.ops import reference

WORKLOADS = [(32, 2048, 256, 192), (32, 2048, 64, 384), (16, 2048, 2048, 64)]


def _cdist_topk(queries: Tensor, points: Tensor, features: Tensor) -> Tensor:
    distances, indices = torch.cdist(queries, points).topk(3, largest=False)
    return (reference.interpolation_weights(distances**2)[..., None] * reference.group(features, indices)).sum(2)


def _reference(queries: Tensor, points: Tensor, features: Tensor) -> Tensor:
    return reference.knn_interpolate(queries, points, features, 3, None)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize(("B", "M", "N", "C"), WORKLOADS)
def bench_knn_interpolate(compare, device, quick, B, M, N, C, backward):
    if quick and backward:
        pytest.skip("seconds on the reference path: run without --quick")
    make = lambda: (clouds(B, M, device), clouds(B, N, device), torch.randn(B, N, C, device=device))  # noqa: E731
    candidates = {"jointmae": ops.knn_interpolate, "torch cdist+topk": _cdist_topk}
    if not quick:
        candidates["reference"] = _reference
    compare(
        f"knn_interpolate{' + backward' if backward else ''} B{B} {M}q/{N} C{C}",
        candidates,
        rotated(make, device),
        rivals=peers_of("knn_interpolate", device),
        wrap=_features_gradient if backward else lambda call: call,
        check=_agreement,
        num_bytes=4.0 * B * (3 * (M + N) + (M + N) * C) * (2 if backward else 1),
        flops=8.0 * B * M * N,
        lane_ops=8.0 * B * M * N,
    )


def _features_gradient(call):
    """Forward and backward to the features, which is what all of them have."""

    def run(queries: Tensor, points: Tensor, features: Tensor) -> Tensor:
        leaf = features.detach().requires_grad_()
        return torch.autograd.grad(call(queries, points, leaf).sum(), leaf)[0]

    return run


def _agreement(result: Tensor, ours: Tensor) -> str:
    """cdist works by x^2 + y^2 - 2xy: for a few queries it takes other neighbours."""
    wrong = ((result - ours).abs() > 1e-2).float().mean().item()
    assert wrong < 1e-2, f"{wrong:.1%} of the values differ"
    return "=" if torch.equal(result, ours) else f"{wrong:.0e} of the values are off by more than 1e-2"
