"""knn_interpolate against the reference and cdist + topk in PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jointmae import ops
from jointmae.ops import reference

WORKLOADS = [(32, 2048, 256, 192), (32, 2048, 64, 384), (16, 2048, 2048, 64)]


def _cdist_topk(queries: Tensor, points: Tensor, features: Tensor) -> Tensor:
    distances, indices = torch.cdist(queries, points).topk(3, largest=False)
    return (reference.interpolation_weights(distances**2)[..., None] * reference.group(features, indices)).sum(2)


@pytest.mark.parametrize(("B", "M", "N", "C"), WORKLOADS)
def bench_knn_interpolate(compare, device, quick, B, M, N, C):
    inputs = [
        (torch.rand(B, M, 3, device=device), torch.rand(B, N, 3, device=device), torch.rand(B, N, C, device=device))
        for _ in range(3)
    ]
    candidates = {"jointmae": ops.knn_interpolate, "torch cdist+topk": _cdist_topk}
    if not quick:
        candidates["reference"] = lambda queries, points, features: reference.knn_interpolate(
            queries, points, features, 3, None
        )

    def check(result: Tensor, ours: Tensor) -> None:
        wrong = (result - ours).abs() > 1e-2
        assert (
            wrong.float().mean() < 1e-3
        )  # cdist works by x^2 + y^2 - 2xy: for a few queries it takes other neighbours

    compare(
        f"knn_interpolate B{B} {M}q/{N} C{C}",
        candidates,
        inputs,
        check=check,
        num_bytes=4.0 * B * (3 * (M + N) + M * C * 4),
        flops=8.0 * B * M * N,
    )
