"""Each of the CUDA kernels at small sizes, and values that nobody has checked."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from jointmae import ops
from jointmae.ops import reference
from tests.op_cases import KINDS, clouds

OP = sys.modules["jointmae.ops.farthest_point_sample"]  # the package's attribute of that name is the function
TEAM_SHARED_BYTES = 2048  # what a block of a team needs of shared memory besides 12 bytes a point
B, N, M = 3, 200, 30  # of most tests here

BLOCK, CLUSTER, GRID = 1, 2, 3
WAYS = {  # path, and the device that it is made for: multiprocessors, points that a block can keep, capability
    "block": (BLOCK, 4, 16384, 90),
    "cluster of 1": (CLUSTER, 1, 16384, 90),
    "cluster of 2": (CLUSTER, 2 * B, 16384, 90),
    "cluster of 4": (CLUSTER, 1, 52, 90),
    "cluster of 8": (CLUSTER, 8 * B, 16384, 90),
    "no clusters": (CLUSTER, 100, 16384, 80),
    "grid, all clouds at once": (GRID, 7, 16384, 80),
    "grid, two clouds at once": (GRID, 5, 100, 90),
    "grid, streamed": (GRID, 4, 12, 90),
    "grid, one block, streamed": (GRID, 1, 4, 90),
}


@pytest.fixture(params=WAYS)
def way(request, on_simt, monkeypatch) -> None:
    path, num_sms, room, capability = WAYS[request.param]
    monkeypatch.setattr(OP, "_PATH", path)
    on_simt.set_limits(num_sms, TEAM_SHARED_BYTES + 12 * room, capability)


@pytest.fixture
def unchecked(monkeypatch) -> None:
    """As on a GPU: nobody looks at values."""
    monkeypatch.setattr(OP, "_check_values", lambda *_: None)


def equals_reference(points: Tensor, num_samples: int, start: int = 0, lengths: Tensor | None = None) -> bool:
    indices = ops.farthest_point_sample(points, num_samples, start, lengths)
    return torch.equal(indices, reference.farthest_point_sample(points, num_samples, start, lengths))


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_equals_reference(way, device, kind):
    assert equals_reference(clouds(kind, B, N, device), M, start=N // 2)


def test_grid_of_more_blocks_than_a_warp_has_lanes(on_simt, monkeypatch):
    monkeypatch.setattr(OP, "_PATH", GRID)
    on_simt.set_limits(34, 227 << 10, 90)
    assert equals_reference(clouds("integer", 1, N, torch.device("cpu")), 10)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 5), (1, 33, 20)])
def test_every_way_with_fewer_points_than_threads(way, shape):
    B, N, M = shape
    assert equals_reference(clouds("random", B, N, torch.device("cpu")), M, start=N - 1)


def test_every_way_with_lengths(way, device):
    points = clouds("integer", B, N, device)
    assert equals_reference(points, M, start=7, lengths=torch.tensor([N, M, 101]))
    assert equals_reference(points, 1, lengths=torch.tensor([1, 2, N]))


def test_every_way_begins_with_the_fewer_samples(way, device):
    points = clouds("random", B, N, device)
    many = ops.farthest_point_sample(points, M)
    assert torch.equal(many[:, :9], ops.farthest_point_sample(points, 9))


@pytest.mark.parametrize(
    "N", [1, 32, 33, 64, 65, 128, 129, 256, 257, 512, 513, 1024, 1025, 2048, 2049, 4096, 4097, 8192]
)
def test_every_block_size(on_simt, N):
    for kind in ("random", "integer"):
        assert equals_reference(clouds(kind, 1, N, torch.device("cpu")), min(N, 6))


@pytest.mark.parametrize(("N", "capability"), [(8193, 90), (16385, 90), (8193, 80), (16385, 80)])
def test_clouds_that_outgrow_a_block(on_simt, N, capability):
    on_simt.set_limits(4, 227 << 10, capability)
    assert equals_reference(clouds("integer", 1, N, torch.device("cpu")), 4)


def test_many_ragged_clouds(on_simt):
    points = clouds("integer", 150, 270, torch.device("cpu"))
    lengths = torch.randint(20, 271, (150,), generator=torch.Generator().manual_seed(1))
    assert equals_reference(points, 20, start=19, lengths=lengths)


def with_bad_points() -> tuple[Tensor, Tensor]:
    """A cloud of which a tenth are not finite, the first too, and the indices of those that are."""
    points = clouds("random", 1, N, torch.device("cpu"))
    points[0, ::20, 0] = torch.nan
    points[0, 5::40, 1] = torch.inf
    points[0, 25::40, 2] = -torch.inf
    return points, points[0].isfinite().all(dim=1).nonzero()[:, 0]


def test_points_that_are_not_finite_are_left_out(way, unchecked):
    points, finite = with_bad_points()
    indices = ops.farthest_point_sample(points, N, start=1)
    alone = ops.farthest_point_sample(points[:, finite], len(finite), start=0)
    assert torch.equal(indices[:, : len(finite)], finite[alone])
    assert (indices[:, len(finite) :] == 0).all()


@pytest.mark.parametrize("start", [0, 5])
def test_start_that_is_not_finite(way, unchecked, start):
    points, finite = with_bad_points()
    indices = ops.farthest_point_sample(points, 1 + len(finite), start)
    alone = ops.farthest_point_sample(points[:, finite], len(finite), start=0)
    assert torch.equal(indices, torch.cat([torch.tensor([[start]]), finite[alone]], dim=1))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_no_point_is_finite(way, unchecked, value):
    indices = ops.farthest_point_sample(torch.full((1, N, 3), value), 5, start=3)
    assert indices.tolist() == [[3, 0, 0, 0, 0]]


def test_lengths_out_of_range(way, unchecked):
    """Cut to 1..N; a start beyond a length is the last point."""
    points = clouds("random", B, N, torch.device("cpu"))
    indices = ops.farthest_point_sample(points, 5, start=9, lengths=torch.tensor([-(2**62), 2**62, 7]))
    assert indices[0].tolist() == [0, 0, 0, 0, 0]
    assert torch.equal(indices[1:2], reference.farthest_point_sample(points[1:2], 5, 9, None))
    assert torch.equal(indices[2:], reference.farthest_point_sample(points[2:, :7], 5, 6, None))
