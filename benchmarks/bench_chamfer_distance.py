"""chamfer_distance, forward and with backward, against kd-trees (pykdtree, scipy) and PyTorch compositions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.conftest import peer
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


def _kdtree(make_tree: Callable[..., object], **options: int) -> Callable[[Tensor, Tensor], Tensor]:
    def one_way(x: Tensor, y: Tensor) -> Tensor:
        nearest = [make_tree(q.numpy()).query(p.numpy(), k=1, **options)[1] for p, q in zip(x, y, strict=True)]
        index = torch.stack([torch.from_numpy(i.astype("int64")) for i in nearest])
        return ((x - y.gather(1, index[..., None].expand(-1, -1, 3))) ** 2).sum(-1).mean()

    return lambda x, y: one_way(x, y) + one_way(y, x)


def _candidates(device: torch.device, quick: bool, B: int, N: int) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    candidates = {"jointmae": ops.chamfer_distance}
    if B * N * N <= (2**23 if quick else 2**27):  # they take seconds and gigabytes beyond
        candidates |= {"reference": _reference, "torch cdist": _cdist, "torch bmm expansion": _expansion}
    if device.type == "cpu" and N >= 1024:
        if peer("pykdtree"):
            candidates["pykdtree"] = _kdtree(peer("pykdtree.kdtree").KDTree)
        if peer("scipy"):
            candidates["scipy cKDTree"] = _kdtree(peer("scipy.spatial").cKDTree, workers=torch.get_num_threads())
    return candidates


@pytest.mark.parametrize(("B", "N"), WORKLOADS + SCENES)
def bench_chamfer_distance(compare, device, quick, B, N):
    if quick and B * N * N > 2**27:
        pytest.skip("a large workload: run without --quick")
    inputs = [(torch.rand(B, N, 3, device=device), torch.rand(B, N, 3, device=device)) for _ in range(3)]
    compare(
        f"chamfer_distance B{B} {N}x{N}",
        _candidates(device, quick, B, N),
        inputs,
        check=_check,
        num_bytes=24.0 * B * N,
        flops=8.0 * B * N * N,
    )


@pytest.mark.parametrize(("B", "N"), WORKLOADS)
def bench_chamfer_distance_backward(compare, device, quick, B, N):
    if quick and N > 1024:
        pytest.skip("a large workload: run without --quick")
    inputs = [(torch.rand(B, N, 3, device=device), torch.rand(B, N, 3, device=device)) for _ in range(3)]
    candidates = {
        name: _with_backward(call) for name, call in _candidates(device, quick, B, N).items() if "ree" not in name
    }  # kd-trees have no gradient with respect to their points
    compare(
        f"chamfer_distance + backward B{B} {N}x{N}",
        candidates,
        inputs,
        check=_check,
        num_bytes=72.0 * B * N,
        flops=8.0 * B * N * N,
    )


def _with_backward(call: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def run(x: Tensor, y: Tensor) -> Tensor:
        x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
        call(x, y).backward()
        return x.grad.square().sum() + y.grad.square().sum()

    return run


def _check(result: Tensor, ours: Tensor) -> None:
    torch.testing.assert_close(result, ours, rtol=1e-2, atol=1e-6)  # the compositions work by x^2 + y^2 - 2xy
