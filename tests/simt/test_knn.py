"""What `tests/test_knn.py` does not reach of the CUDA kernels: each path at small sizes, and values nobody checked."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from jointmae import ops
from jointmae.ops import native, reference
from tests.op_cases import KINDS, clouds, equal

op = importlib.import_module("jointmae.ops.knn")  # the name is the function
WARP, BLOCK, TREE = PATHS = (1, 2, 3)


@pytest.fixture(params=PATHS)
def path(request, monkeypatch) -> int:
    monkeypatch.setattr(op, "_PATH", request.param)
    return request.param


@pytest.fixture
def unchecked(monkeypatch) -> None:
    """Values are not looked at, as on a GPU."""
    monkeypatch.setattr(op, "_check_values", lambda *args: None)


def by_sorting(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As the reference, with NaN farther than infinity."""
    dx, dy, dz = (queries[:, :, None] - points[:, None]).unbind(-1)
    values, order = ((dx * dx + dy * dy) + dz * dz).sort(dim=-1, stable=True)
    return values[..., :k], order[..., :k]


def same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    """The same bits, and NaN equals NaN."""
    return torch.equal(a[1], b[1]) and torch.equal(a[0].nan_to_num(-1, -2), b[0].nan_to_num(-1, -2))


@pytest.mark.parametrize("kind", KINDS)
def test_equals_reference(device, path, kind):
    for B, M, N in ((3, 1, 1), (2, 9, 33), (1, 17, 1100), (2, 3, 2500)):
        points = clouds(kind, B, N, device)
        queries = torch.cat([clouds(kind, B, M, device, seed=1), points[:, -1:]], dim=1)
        for k in {1, min(N, 5), min(N, 32), min(N, 33), min(N, 64)}:
            assert equal(ops.knn(queries, points, k), reference.knn(queries, points, k, None))


def test_lengths(device, path):
    points = clouds("integer", 5, 2200, device)
    queries = clouds("integer", 5, 9, device, seed=1)
    lengths = torch.tensor([2200, 64, 1024, 1025, 2049])
    for k in (3, 64):
        assert equal(ops.knn(queries, points, k, lengths), reference.knn(queries, points, k, lengths))


def test_three_levels_of_the_tree(device, monkeypatch):
    monkeypatch.setattr(op, "_PATH", TREE)
    points = clouds("random", 1, 66_000, device)  # and more cells than threads sum up at once
    points[:, 5000:7000] = points[:, :1]  # a cell with more points than a chunk
    points[:, 9] = 1e30  # and all others in one cell
    queries = torch.cat([points[:, 4999:5001], points[:, 9:10], clouds("random", 1, 3, device, seed=1)], dim=1)
    assert equal(ops.knn(queries, points, 20), reference.knn(queries, points, 20, None))
    points[:, 9] = 0
    assert equal(ops.knn(queries, points, 20), reference.knn(queries, points, 20, None))


@pytest.mark.parametrize("kind", ["integer", "random", "duplicates", "overflowing"])
def test_queries_that_are_bounded_by_their_neighbors(device, monkeypatch, simt, unchecked, kind):
    """On a device this small a warp of the tree has more than one query: two, then five."""
    monkeypatch.setattr(op, "_PATH", TREE)
    simt.set_limits(num_sms=1)
    points = clouds(kind, 2, 1100, device)
    lengths = torch.tensor([1100, 40])
    for M, k in ((80, 7), (170, 40)):
        queries = torch.cat([points[:, 3 : M // 2], clouds(kind, 2, M // 2, device, seed=1) * 0.7], dim=1)
        assert equal(ops.knn(queries, points, k, lengths), reference.knn(queries, points, k, lengths))
    queries[0, ::3, 1] = torch.nan
    assert same(ops.knn(queries, points, 7), by_sorting(queries, points, 7))


@pytest.mark.parametrize("kind", ["integer", "random", "equal"])
def test_more_neighbors_than_fit_into_shared_memory(device, kind):
    points, queries = clouds(kind, 1, 8300, device), clouds(kind, 1, 1, device, seed=1)
    assert equal(ops.knn(queries, points, 8250), reference.knn(queries, points, 8250, None))


def test_many_ties_at_the_last_neighbor(device):
    points = clouds("integer", 1, 5000, device)[:, :, :1].expand(-1, -1, 3).contiguous()
    queries = points[:, :2].contiguous()
    for k in (65, 1000, 2500):
        assert equal(ops.knn(queries, points, k), reference.knn(queries, points, k, None))


def test_not_finite(device, path, unchecked):
    points, queries = clouds("random", 2, 1500, device), clouds("random", 2, 12, device, seed=1)
    for n, value in enumerate((torch.nan, torch.inf, -torch.inf) * 3):
        points[0, 7 * n, n // 3] = value
        queries[:, n, n // 3] = value
    points[1, 10:] = torch.nan
    for k in (1, 20, 64):
        assert same(ops.knn(queries, points, k), by_sorting(queries, points, k))
    assert same(ops.knn(queries, points * torch.inf, 64), by_sorting(queries, points * torch.inf, 64))


def test_lengths_that_nobody_checked(device, path, unchecked):
    points, queries = clouds("random", 5, 130, device), clouds("random", 5, 3, device, seed=1)
    lengths = torch.tensor([-(2**63), 0, 3, 40, 2**62])
    kept = torch.tensor([1, 1, 3, 40, 130])
    for k in (30, 64, 100):
        for b, length in enumerate(kept.tolist()):
            sq_dists, indices = (result[b] for result in ops.knn(queries, points, k, lengths))
            real = min(k, length)
            wanted = reference.knn(queries[b : b + 1], points[b : b + 1, :length], real, None)
            assert equal((sq_dists[None, :, :real], indices[None, :, :real]), wanted)
            assert sq_dists[:, real:].isposinf().all()
            assert ((0 <= indices) & (indices < 130)).all()


def test_the_path_is_chosen_by_size(simt):
    def needs_workspace(B: int, M: int, N: int, k: int) -> bool:
        return simt.knn_workspace_cuda(B, M, N, k, 0) > 0

    for B, M, N, k in ((128, 128, 1024, 32), (32, 2048, 2048, 32), (1, 1, 4096, 8), (1, 10**6, 10**6, 65)):
        assert not needs_workspace(B, M, N, k)
    for B, M, N, k in ((32, 1024, 8192, 32), (1, 10**5, 10**5, 16), (1, 1000, 10**6, 64)):
        assert needs_workspace(B, M, N, k)


@pytest.mark.skipif(native.kernels is None, reason="needs the CPU's kernels")
@pytest.mark.parametrize("k", [1, 31, 32, 33, 70])
def test_backward_equals_the_cpu(device, k):
    queries, points = clouds("random", 2, 40, device, seed=1), clouds("random", 2, 90, device)
    points[:, 50:] += 100  # nobody's neighbours
    points[:, 0] = queries.mean(1)
    indices = reference.knn(queries, points, k, None)[1]
    grad = torch.randn(indices.shape, generator=torch.Generator().manual_seed(2))
    ours = op._backward_cuda(grad, queries, points, indices)
    assert equal(ours, op._backward_cpu(grad, queries, points, indices))


def test_backward_ignores_indices_out_of_range(device):
    queries, points = clouds("random", 1, 2, device, seed=1), clouds("random", 1, 5, device)
    grad = torch.ones(1, 2, 4)
    indices = torch.tensor([[[-1, 5, 2**40, 3], [-(2**63), 2**63 - 1, 2**32, 3]]])
    ours = torch.ops.jointmae.knn_backward(grad, queries, points, indices)
    assert equal(ours, reference.knn_backward(grad[..., 3:], queries, points, indices[..., 3:]))
