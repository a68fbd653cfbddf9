from __future__ import annotations

import pytest
import torch

from jointmae import ops
from jointmae.ops import reference
from tests.op_cases import KINDS, SIZES, check_concurrent, check_fork, check_same_bits, clouds


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("B", "N"), SIZES)
def test_equals_reference(device, B, N, kind, dtype):
    points = clouds(kind, B, N, device, dtype)
    for num_samples in {1, min(N, 40)}:
        start = N // 2
        indices = ops.farthest_point_sample(points, num_samples, start)
        assert torch.equal(indices, reference.farthest_point_sample(points, num_samples, start, None))


@pytest.mark.parametrize("kind", ["integer", "random"])
def test_lengths(device, kind):
    points = clouds(kind, 4, 90, device)
    lengths = torch.tensor([90, 30, 12, 77], device=device)
    indices = ops.farthest_point_sample(points, 12, lengths=lengths)
    assert torch.equal(indices, reference.farthest_point_sample(points, 12, 0, lengths))
    for b, length in enumerate(lengths):
        alone = ops.farthest_point_sample(points[b : b + 1, :length], 12)
        assert torch.equal(indices[b : b + 1], alone)


def test_first_samples_are_the_fewer_samples(device):
    points = clouds("random", 3, 256, device)
    many = ops.farthest_point_sample(points, 64)
    assert torch.equal(many[:, :16], ops.farthest_point_sample(points, 16))


def test_samples_are_distinct_while_points_are(device):
    indices = ops.farthest_point_sample(clouds("random", 2, 200, device), 200)
    assert torch.equal(indices.sort(dim=1).values, torch.arange(200, device=device).expand(2, -1))


def test_no_distinct_point_left(device):
    """Three distinct points, five asked for: the lowest index, again and again."""
    points = torch.tensor([[[1.0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 2, 0]]], device=device)
    assert ops.farthest_point_sample(points, 4, start=1).tolist() == [[1, 3, 0, 0]]


def test_no_point_near_the_origin_is_skipped(device):
    points = torch.zeros(1, 3, 3, device=device)
    points[0, 1, 0], points[0, 2, 0] = 1e-3, 1.0
    assert ops.farthest_point_sample(points, 3, start=2).tolist() == [[2, 0, 1]]


def test_other_dtypes_and_strides(device):
    points = clouds("random", 2, 100, device)
    expected = ops.farthest_point_sample(points.half(), 20)
    assert torch.equal(expected, ops.farthest_point_sample(points.half().float(), 20))
    strided = points.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(ops.farthest_point_sample(strided, 20), ops.farthest_point_sample(points, 20))


def test_empty_batch(device):
    indices = ops.farthest_point_sample(torch.rand(0, 5, 3, device=device), 2)
    assert indices.shape == (0, 2)
    assert indices.dtype == torch.int64


def test_errors():
    points = torch.rand(2, 8, 3)
    bad = points.clone()
    bad[1, 4, 2] = torch.nan
    short = torch.tensor([8, 3])
    for error, message, call in [
        (ValueError, "num_samples must be in [1, N=8], got 9", lambda: ops.farthest_point_sample(points, 9)),
        (ValueError, "num_samples must be in [1, N=8], got 0", lambda: ops.farthest_point_sample(points, 0)),
        (ValueError, "start must be in [0, N=8), got 8", lambda: ops.farthest_point_sample(points, 1, 8)),
        (ValueError, "points must have shape [B, N, 3], got [8, 3]", lambda: ops.farthest_point_sample(points[0], 1)),
        (
            ValueError,
            "points must have at least one point, got [2, 0, 3]",
            lambda: ops.farthest_point_sample(points[:, :0], 1),
        ),
        (ValueError, "points must be finite, got nan at [1, 4, 2]", lambda: ops.farthest_point_sample(bad, 1)),
        (
            TypeError,
            "points must be floating point, got torch.int64; call .float() on it",
            lambda: ops.farthest_point_sample(points.long(), 1),
        ),
        (
            ValueError,
            "points must have fewer than 2^31 points, got 2147483648",
            lambda: ops.farthest_point_sample(torch.empty(1, 1, 3).expand(1, 2**31, 3), 1),
        ),
        (TypeError, "num_samples must be an int, got float", lambda: ops.farthest_point_sample(points, 8.0)),
        (TypeError, "start must be an int, got Tensor", lambda: ops.farthest_point_sample(points, 1, bad[0])),
        (TypeError, "points must be a tensor, got list", lambda: ops.farthest_point_sample([1], 1)),
        (ValueError, "lengths must be at least 4, got 3", lambda: ops.farthest_point_sample(points, 4, lengths=short)),
        (
            ValueError,
            "lengths must be at most N=8, got 9",
            lambda: ops.farthest_point_sample(points, 4, lengths=short + 1),
        ),
        (
            TypeError,
            "lengths must be int64, got torch.int32",
            lambda: ops.farthest_point_sample(points, 4, lengths=short.int()),
        ),
        (
            ValueError,
            "lengths must have shape [B=2], got [1]",
            lambda: ops.farthest_point_sample(points, 4, lengths=short[:1]),
        ),
    ]:
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value) == f"farthest_point_sample: {message}"


def test_registration(device):
    points = clouds("random", 2, 40, device)
    lengths = torch.tensor([40, 20], device=device)
    torch.library.opcheck(torch.ops.jointmae.farthest_point_sample, (points, 8, 0, None))
    torch.library.opcheck(torch.ops.jointmae.farthest_point_sample, (points.double(), 8, 3, lengths))


def test_compile(device):
    compiled = torch.compile(lambda p: ops.farthest_point_sample(p, 8), backend="aot_eager", fullgraph=True)
    points = clouds("random", 2, 40, device)
    assert torch.equal(compiled(points), ops.farthest_point_sample(points, 8))


def test_same_bits(num_threads):
    points = clouds("random", 5, 300, torch.device("cpu"))
    check_same_bits(lambda: ops.farthest_point_sample(points, 50), num_threads)


def test_concurrent_and_forked():
    points = clouds("random", 8, 100, torch.device("cpu"))
    check_concurrent(lambda: ops.farthest_point_sample(points, 20))
    check_fork(lambda: ops.farthest_point_sample(points, 20))
