from __future__ import annotations

import sys

import pytest
import torch

from jointmae import ops
from jointmae.ops import reference
from tests.op_cases import KINDS, SIZES, check_concurrent, check_fork, check_same_bits, clouds

module = sys.modules[ops.farthest_point_sample.__module__]
CPU = torch.device("cpu")
FLAT, BOXES = 1, 2  # the paths of the CPU kernel, farthest_point_sample.h


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


def hard_clouds(N: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Clouds [1, N, 3] that are hard to cut into boxes, or full of ties."""
    points = clouds("random", 1, N, CPU, dtype)
    far_out, torn, on_a_line, nearly_equal = points.clone(), points.clone(), points.clone(), points.clone()
    far_out[0, N // 3] = 1e6
    torn[:, ::2] += 1e4
    on_a_line[..., 1:] = on_a_line[..., :1]
    nearly_equal[:, 1:] = nearly_equal[:, :1]
    side = torch.arange(N) % 11
    lattice = torch.stack([side, torch.arange(N) // 11 % 9, torch.arange(N) // 99], dim=-1)[None].to(dtype)
    return {
        **{kind: clouds(kind, 1, N, CPU, dtype) for kind in KINDS},
        "far out": far_out,
        "torn": torn,
        "on a line": on_a_line,
        "nearly equal": nearly_equal,
        "lattice": lattice,
        "shuffled lattice": lattice[:, torch.randperm(N, generator=torch.Generator().manual_seed(0))],
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("N", [1, 5, 63, 64, 65, 1024, 1025, 1500, 2500])
def test_paths_equal_reference(monkeypatch, N, dtype):
    for name, points in hard_clouds(N, dtype).items():
        num_samples = min(N, 150)
        expected = reference.farthest_point_sample(points, num_samples, N // 2, None)
        for path in (0, FLAT, BOXES):
            monkeypatch.setattr(module, "_CPU_PATH", path)
            indices = ops.farthest_point_sample(points, num_samples, N // 2)
            assert torch.equal(indices, expected), f"{name}, path {path}"


@pytest.mark.parametrize("kind", ["integer", "random", "duplicates"])
def test_every_point_is_sampled_on_every_path(monkeypatch, kind):
    points = clouds(kind, 1, 1500, CPU)
    expected = reference.farthest_point_sample(points, 1500, 7, None)
    for path in (FLAT, BOXES):
        monkeypatch.setattr(module, "_CPU_PATH", path)
        assert torch.equal(ops.farthest_point_sample(points, 1500, 7), expected)


@pytest.mark.parametrize("N", [16 * 1024, 16 * 1024 + 1, 20_000])  # up to 16 groups of 16 boxes, and more
def test_paths_agree_on_large_clouds(monkeypatch, num_threads, N):
    for name, points in hard_clouds(N, torch.float32).items():
        results = []
        for path, threads in [(FLAT, 1), (BOXES, 1), (BOXES, 3)]:
            monkeypatch.setattr(module, "_CPU_PATH", path)
            num_threads(threads)
            results.append(ops.farthest_point_sample(points, 200))
        assert torch.equal(results[0], results[1]), name
        assert torch.equal(results[1], results[2]), name


def test_large_cloud_equals_reference():
    points = clouds("random", 1, 20_000, CPU)
    expected = reference.farthest_point_sample(points, 100, 3, None)
    assert torch.equal(ops.farthest_point_sample(points, 100, 3), expected)


@pytest.mark.parametrize("path", [FLAT, BOXES])
@pytest.mark.parametrize("B", [1, 2, 3, 5, 16, 33])
def test_any_batch_on_any_number_of_threads(monkeypatch, num_threads, B, path):
    """Threads take ranges of clouds, and two clouds of a range in turn; each cloud has a length of its own."""
    monkeypatch.setattr(module, "_CPU_PATH", path)
    points = clouds("random", B, 300, CPU)
    lengths = 300 - 13 * (torch.arange(B) % 20)
    expected = reference.farthest_point_sample(points, 20, 2, lengths)
    for threads in (1, 2, 4):
        num_threads(threads)
        assert torch.equal(ops.farthest_point_sample(points, 20, 2, lengths), expected)


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
