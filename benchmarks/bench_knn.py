"""knn against kd-trees (pykdtree, scipy), torch-cluster and cdist + topk in PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.conftest import peer
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


def _kdtree(make_tree: Callable[..., object], **options: int) -> Callable[..., tuple[Tensor, Tensor]]:
    def search(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
        found = [make_tree(p.numpy()).query(q.numpy(), k=k, **options) for q, p in zip(queries, points, strict=True)]
        distances = torch.stack([torch.from_numpy(d) for d, _ in found]).float()
        return distances**2, torch.stack([torch.from_numpy(i.astype("int64")) for _, i in found])

    return search


def _cdist_topk(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, indices = torch.cdist(queries, points).topk(k, largest=False)
    return values**2, indices


@pytest.mark.parametrize(("B", "M", "N", "k"), WORKLOADS + SCENES)
def bench_knn(compare, device, quick, B, M, N, k):
    if quick and B * M * N > 2**27:
        pytest.skip("a large workload: run without --quick")
    inputs = [(torch.rand(B, M, 3, device=device), torch.rand(B, N, 3, device=device), k) for _ in range(3)]
    candidates = {"jointmae": ops.knn}
    if B * M * N <= (2**24 if quick else 2**28):  # they take seconds and gigabytes beyond
        candidates["reference"] = lambda queries, points, k: reference.knn(queries, points, k, None)
        candidates["torch cdist+topk"] = _cdist_topk
    if device.type == "cpu" and peer("pykdtree"):
        candidates["pykdtree"] = _kdtree(peer("pykdtree.kdtree").KDTree)
    if device.type == "cpu" and peer("scipy"):
        candidates["scipy cKDTree"] = _kdtree(peer("scipy.spatial").cKDTree, workers=torch.get_num_threads())

    def check(result: tuple[Tensor, Tensor], ours: tuple[Tensor, Tensor]) -> None:
        torch.testing.assert_close(result[0], ours[0], rtol=1e-3, atol=1e-5)  # cdist works by x^2 + y^2 - 2xy

    compare(
        f"knn B{B} {M}q/{N} k{k}",
        candidates,
        inputs,
        check=check,
        num_bytes=12.0 * B * (M + N + M * k),
        flops=8.0 * B * M * N,
    )
