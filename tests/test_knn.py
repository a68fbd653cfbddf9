from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from jointmae import ops
from jointmae.ops import reference
from tests.op_cases import KINDS, SIZES, check_concurrent, check_fork, check_same_bits, clouds, equal

op = importlib.import_module("jointmae.ops.knn")  # the name is the function
SCAN, BOXES, FEW = 1, 2, 3
CPU = torch.device("cpu")


@pytest.fixture(params=[SCAN, BOXES, FEW], ids=["scan", "boxes", "few"])
def cpu_path(request, monkeypatch) -> int:
    monkeypatch.setattr(op, "_CPU_PATH", request.param)
    return request.param


def hard_clouds(N: int) -> dict[str, Tensor]:
    """Clouds [1, N, 3] whose boxes overlap, are flat or empty, or lie far apart; a lattice whose distances all tie."""
    points = clouds("random", 1, N, CPU)
    lattice = torch.cartesian_prod(*3 * [torch.arange(round(N ** (1 / 3)) + 1)]).float()
    padded, outlier, moved, line = (points.clone() for _ in range(4))
    padded[:, N // 3 :] = 0
    outlier[:, N // 2] = 1e6
    moved[:, ::2] += 1e4
    line[..., 1:] = 0.5
    return {
        "lattice": lattice[torch.randperm(len(lattice), generator=torch.Generator().manual_seed(0))[:N]][None],
        "equal": torch.full((1, N, 3), 0.3),
        "padded": padded,
        "hidden": torch.where(torch.arange(N)[:, None] % 4 > 0, 1e4, points),  # as the embedding of a masked cloud
        "outlier": outlier,
        "moved": moved,
        "line": line,
        "plane": points * torch.tensor([1.0, 1.0, 0.0]),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_every_path_equals_reference(cpu_path, kind, dtype):
    for B, N in (*SIZES, (1, 63), (2, 65), (1, 1025), (1, 2049)):
        points = clouds(kind, B, N, CPU, dtype)
        queries = torch.cat([clouds(kind, B, 18, CPU, dtype, seed=1), points[:, -3:]], dim=1)
        for k in {1, min(N, 2), min(N, 3), min(N, 4), min(N, 33), N}:
            assert equal(ops.knn(queries, points, k), reference.knn(queries, points, k, None)), (N, k)


@pytest.mark.parametrize("name", hard_clouds(1))
def test_every_path_on_hard_clouds(cpu_path, name):
    points = hard_clouds(3000)[name]
    outside = torch.tensor([[[1e7, 0, 0], [-50, 40, 30], [0, 0, 1e-20]]])
    queries = torch.cat([points[:, ::97], outside], dim=1)
    for k in (1, 3, 16, 70, 300):
        assert equal(ops.knn(queries, points, k), reference.knn(queries, points, k, None)), k


@pytest.mark.parametrize("kind", ["integer", "random"])
def test_every_path_with_lengths(cpu_path, kind):
    points, queries = clouds(kind, 5, 2200, CPU), clouds(kind, 5, 19, CPU, seed=1)
    lengths = torch.tensor([2200, 64, 1024, 1025, 2049])
    for k in (1, 4, 64):
        assert equal(ops.knn(queries, points, k, lengths), reference.knn(queries, points, k, lengths))


@pytest.mark.parametrize("name", hard_clouds(1))
def test_boxes_equal_scan_on_large_clouds(monkeypatch, name):
    points = hard_clouds(40_000)[name]
    queries = points[:, torch.randperm(40_000, generator=torch.Generator().manual_seed(1))[:1500]]
    found = {}
    for path in (SCAN, BOXES, 0):
        monkeypatch.setattr(op, "_CPU_PATH", path)
        found[path] = [ops.knn(queries, points, k) for k in (1, 16)]
    assert equal(found[SCAN], found[BOXES])
    assert equal(found[SCAN], found[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("B", "N"), SIZES)
def test_equals_reference(device, B, N, kind, dtype):
    points = clouds(kind, B, N, device, dtype)
    queries = torch.cat([clouds(kind, B, 9, device, dtype, seed=1), points[:, :3]], dim=1)  # some on a point
    for k in {1, min(N, 8), min(N, 33), N}:
        assert equal(ops.knn(queries, points, k), reference.knn(queries, points, k, None))


@pytest.mark.parametrize("N", [63, 64, 65, 1023, 1024, 1025, 2049, 5000])
def test_sizes_around_the_tiles(device, N):
    points = clouds("random", 1, N, device)
    sorted_points = points.clone()
    sorted_points[..., 0] = points[..., 0].sort(descending=True).values  # each tile has nearer points than the last
    queries = clouds("random", 1, 5, device, seed=1) - 10
    for k in (1, 16, 63):
        assert equal(ops.knn(queries, points, k), reference.knn(queries, points, k, None))
        assert equal(ops.knn(queries, sorted_points, k), reference.knn(queries, sorted_points, k, None))


def test_ties_go_to_the_lowest_index(device):
    points = torch.zeros(1, 3000, 3, device=device)
    sq_dists, indices = ops.knn(points[:, :2], points, 700)
    assert torch.equal(indices, torch.arange(700, device=device).expand(1, 2, -1))
    assert not sq_dists.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [200, 1025, 1026, 1031, 1500])
def test_every_path_with_many_neighbors(cpu_path, k, dtype):
    for N in (2 * k + 1, 2 * k + 5, 4000):  # more than a first tile of 2k points, or of 2,048
        points, queries = (
            clouds("random", 2, N, CPU, dtype),
            clouds("random", 2, 3, CPU, dtype, seed=1),
        )
        lengths = torch.tensor([N, 2 * k + 1])
        assert equal(ops.knn(queries, points, k), reference.knn(queries, points, k, None))
        assert equal(ops.knn(queries, points, k, lengths), reference.knn(queries, points, k, lengths))


@pytest.mark.parametrize("kind", ["integer", "random"])
def test_lengths(device, kind):
    points = clouds(kind, 4, 90, device)
    queries = clouds(kind, 4, 7, device, seed=1)
    lengths = torch.tensor([90, 30, 12, 77], device=device)
    sq_dists, indices = ops.knn(queries, points, 12, lengths)
    assert equal((sq_dists, indices), reference.knn(queries, points, 12, lengths))
    for b, length in enumerate(lengths):
        alone = ops.knn(queries[b : b + 1], points[b : b + 1, :length], 12)
        assert equal((sq_dists[b : b + 1], indices[b : b + 1]), alone)


def test_far_from_the_origin_a_point_is_its_own_nearest(device):
    points = clouds("random", 1, 200, device) + 1000
    sq_dists, indices = ops.knn(points, points, 2)
    assert not sq_dists[..., 0].any()
    assert torch.equal(indices[0, :, 0], torch.arange(200, device=device))


def test_other_dtypes_and_strides(device):
    queries, points = clouds("random", 2, 10, device, seed=1), clouds("random", 2, 100, device)
    half = ops.knn(queries.bfloat16(), points.bfloat16(), 5)
    assert half[0].dtype == torch.float32
    assert equal(half, ops.knn(queries.bfloat16().float(), points.bfloat16().float(), 5))
    mixed = ops.knn(queries, points.double(), 5)
    assert equal(mixed, ops.knn(queries.double(), points.double(), 5))
    strided = points.transpose(1, 2).contiguous().transpose(1, 2)
    assert equal(ops.knn(queries, strided, 5), ops.knn(queries, points, 5))


def test_empty_batch(device):
    empty = torch.rand(0, 5, 3, device=device, requires_grad=True)
    sq_dists, indices = ops.knn(empty, empty, 2)
    assert sq_dists.shape == indices.shape == (0, 5, 2)
    sq_dists.sum().backward()
    assert empty.grad.shape == empty.shape


def test_errors():
    points = torch.rand(2, 8, 3)
    bad = points.clone()
    bad[0, 1, 2] = torch.inf
    lengths = torch.tensor([8, 3])
    for error, message, call in [
        (ValueError, "k must be in [1, N=8], got 9", lambda: ops.knn(points, points, 9)),
        (ValueError, "k must be in [1, N=8], got 0", lambda: ops.knn(points, points, 0)),
        (ValueError, "points must have shape [B, N, 3], got [8, 3]", lambda: ops.knn(points, points[0], 1)),
        (ValueError, "queries must be finite, got inf at [0, 1, 2]", lambda: ops.knn(bad, points, 1)),
        (ValueError, "points must be finite, got inf at [0, 1, 2]", lambda: ops.knn(points, bad, 1)),
        (ValueError, "queries and points must have the same B, got 1 and 2", lambda: ops.knn(points[:1], points, 1)),
        (
            TypeError,
            "points must be floating point, got torch.int32; call .float() on it",
            lambda: ops.knn(points, points.int(), 1),
        ),
        (ValueError, "lengths must be at least 4, got 3", lambda: ops.knn(points, points, 4, lengths)),
        (ValueError, "lengths must be at most N=8, got 9", lambda: ops.knn(points, points, 4, lengths + 1)),
        (TypeError, "lengths must be a tensor, got list", lambda: ops.knn(points, points, 4, [8, 8])),
    ]:
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value) == f"knn: {message}"


def test_gradients(device):
    queries = clouds("random", 2, 5, device, torch.float64, seed=1).requires_grad_()
    points = clouds("random", 2, 9, device, torch.float64).requires_grad_()
    lengths = torch.tensor([9, 6], device=device)
    assert torch.autograd.gradcheck(lambda q, p: ops.knn(q, p, 4, lengths)[0], (queries, points))


def test_backward_equals_reference(device):
    queries, points = clouds("integer", 2, 30, device, seed=1), clouds("integer", 2, 50, device)
    _, indices = ops.knn(queries, points, 7)
    grad = torch.randint(-3, 4, indices.shape, device=device).float()
    ours = torch.ops.jointmae.knn_backward(grad, queries, points, indices)
    assert equal(ours, reference.knn_backward(grad, queries, points, indices))


def test_registration(device):
    queries = clouds("random", 2, 5, device, seed=1).requires_grad_()
    points = clouds("random", 2, 40, device).requires_grad_()
    lengths = torch.tensor([40, 20], device=device)
    torch.library.opcheck(torch.ops.jointmae.knn, (queries, points, 8, None))
    torch.library.opcheck(torch.ops.jointmae.knn, (queries.double(), points.double(), 8, lengths))
    sq_dists, indices = ops.knn(queries.detach(), points.detach(), 8)
    torch.library.opcheck(torch.ops.jointmae.knn_backward, (sq_dists, queries.detach(), points.detach(), indices))


def test_compile(device):
    compiled = torch.compile(lambda q, p: ops.knn(q, p, 3), backend="aot_eager", fullgraph=True)
    points = clouds("random", 2, 40, device).requires_grad_()
    result = compiled(points, points)
    assert equal(result, ops.knn(points, points, 3))
    result[0].sum().backward()
    assert points.grad is not None


@pytest.mark.parametrize(("B", "N"), [(3, 1500), (1, 6000), (5, 2500)])
def test_same_bits(num_threads, B, N):
    points = clouds("random", B, N, torch.device("cpu"))
    grad = torch.rand(B, N, 20)

    def call():
        leaf = points.clone().requires_grad_()
        sq_dists, indices = ops.knn(leaf, leaf, 20)
        sq_dists.backward(grad)
        return sq_dists.detach(), indices, leaf.grad

    check_same_bits(call, num_threads)


def test_concurrent_and_forked():
    points = clouds("random", 8, 100, torch.device("cpu"))
    check_concurrent(lambda: ops.knn(points, points, 9))
    check_fork(lambda: ops.knn(points, points, 9))
