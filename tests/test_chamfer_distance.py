from __future__ import annotations

import importlib

import pytest
import torch

from jointmae import ops
from jointmae.ops import native, reference
from tests.op_cases import KINDS, SIZES, check_concurrent, check_fork, check_same_bits, clouds, equal

op = importlib.import_module("jointmae.ops.chamfer_distance")  # the name is the function
BY_SIZE, MANY_PAIRS, BRUTE, BOXES = range(4)  # on the CPU
needs_native = pytest.mark.skipif(native.kernels is None, reason="only the native kernels have more than one way")
CPU = torch.device("cpu")


def _op(x, y, lengths_x=None, lengths_y=None):
    return torch.ops.jointmae.chamfer_distance(x, y, lengths_x, lengths_y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("B", "N"), SIZES)
def test_equals_reference(device, num_threads, B, N, kind, dtype):
    x = clouds(kind, B, N, device, dtype)
    y = torch.cat([clouds(kind, B, 19, device, dtype, seed=1), x[:, :3]], dim=1)  # some in both
    for a, b in ((x, y), (y, x), (x, x)):
        expected = reference.chamfer_distance(a, b, None, None)
        for threads in (1, 7):
            num_threads(threads)
            assert equal(_op(a, b), expected)


@pytest.mark.parametrize("N", [15, 16, 17, 511, 512, 513, 1100])
def test_sizes_around_the_tiles(device, N):
    x, y = clouds("random", 2, N, device), clouds("random", 2, N + 1, device, seed=1)
    assert equal(_op(x, y), reference.chamfer_distance(x, y, None, None))


@pytest.mark.parametrize("kind", ["integer", "random", "overflowing"])
def test_lengths(device, num_threads, kind):
    x, y = clouds(kind, 4, 90, device), clouds(kind, 4, 40, device, seed=1)
    lengths_x = torch.tensor([90, 30, 1, 77], device=device)
    lengths_y = torch.tensor([1, 40, 3, 17], device=device)
    expected = reference.chamfer_distance(x, y, lengths_x, lengths_y)
    for threads in (1, 2, 9):
        num_threads(threads)
        assert equal(_op(x, y, lengths_x, lengths_y), expected)
    for b in range(4):
        n, m = int(lengths_x[b]), int(lengths_y[b])
        d_xy, d_yx, _, _ = _op(x[b : b + 1, :n], y[b : b + 1, :m])
        assert torch.equal(expected[0][b : b + 1, :n], d_xy)
        assert torch.equal(expected[1][b : b + 1, :m], d_yx)
        assert not expected[0][b, n:].any()
        assert not expected[1][b, m:].any()


@pytest.fixture(params=[MANY_PAIRS, BRUTE, BOXES], ids=["many_pairs", "brute", "boxes"])
def path(request, monkeypatch):
    monkeypatch.setattr(op, "_CPU_PATH", request.param)
    return request.param


def _pair(kind, B, N, M, dtype=torch.float32):
    """Two clouds each that are hard to search: lattices full of ties, lines, points far away, all in one place."""
    if kind in KINDS:
        x, y = clouds(kind, B, N, CPU, dtype), clouds(kind, B, M, CPU, dtype, seed=1)
        x[:, N // 2] = y[:, M // 2]
        return x, y
    x, y = clouds("random", B, N, CPU, dtype), clouds("random", B, M, CPU, dtype, seed=1)
    if kind == "lattice":
        x, y = (10 * x).round() / 8, (5 * y).round() / 4
    elif kind == "collinear":
        x[..., 1:], y[..., 1:] = 0.1, 0.2
    elif kind == "outlier":
        x[:, N // 2], y[:, M // 3] = 1e6, -1e6
    elif kind == "half moved":
        x[:, N // 2 :] += 1e4
    elif kind == "disjoint":
        y += torch.tensor([1e4, 0, 0], dtype=dtype)
    elif kind == "one place":  # and others
        x[:, N // 3 :], y[:, M // 2 :] = 0, 0
    elif kind == "shells":  # the nearest are almost as near as the farthest
        x, y = torch.nn.functional.normalize(x, dim=-1), 0.01 * torch.nn.functional.normalize(y, dim=-1)
    return x, y


HARD = ("lattice", "collinear", "outlier", "half moved", "disjoint", "one place", "shells")


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [*KINDS, *HARD])
@pytest.mark.parametrize(("B", "N", "M"), [(1, 1, 1), (2, 1, 300), (2, 300, 1), (17, 15, 16), (1, 1100, 700)])
def test_each_path_equals_reference(path, num_threads, B, N, M, kind, dtype):
    x, y = _pair(kind, B, N, M, dtype)
    expected = reference.chamfer_distance(x, y, None, None)
    for threads in (1, 3):
        num_threads(threads)
        assert equal(_op(x, y), expected)


@needs_native
@pytest.mark.parametrize("N", [2, 5, 6, 16, 17, 31, 33, 63, 64, 65, 127, 129, 1023, 1025])
def test_sizes_around_vectors_blocks_and_boxes(path, N):
    x, y = _pair("integer", 3, N, N // 2 + 1)
    assert equal(_op(x, y), reference.chamfer_distance(x, y, None, None))


@needs_native
@pytest.mark.parametrize("B", [1, 7, 8, 9, 15, 16, 17, 40])
def test_lengths_on_each_path(path, num_threads, B):
    x, y = _pair("random", B, 90, 70)
    lengths_x = torch.randint(1, 91, (B,), generator=torch.Generator().manual_seed(0))
    lengths_y = torch.randint(1, 71, (B,), generator=torch.Generator().manual_seed(1))
    lengths_x[-1], lengths_y[0] = 1, 1
    x[torch.arange(90) >= lengths_x[:, None]] = 0.1  # padding that would be near
    y[torch.arange(70) >= lengths_y[:, None]] = 0.2
    for threads in (1, 2, 5):
        num_threads(threads)
        for lengths in ((lengths_x, lengths_y), (None, lengths_y), (lengths_x, None)):
            assert equal(_op(x, y, *lengths), reference.chamfer_distance(x, y, *lengths))


@needs_native
@pytest.mark.parametrize("kind", ["random", "equal", *HARD])
def test_large_clouds_by_boxes_and_brute(monkeypatch, kind):
    x, y = _pair(kind, 1, 20_000, 7_000)
    monkeypatch.setattr(op, "_CPU_PATH", BRUTE)
    expected = _op(x, y)
    monkeypatch.setattr(op, "_CPU_PATH", BOXES)
    assert equal(_op(x, y), expected)
    monkeypatch.setattr(op, "_CPU_PATH", BY_SIZE)
    assert equal(_op(y, x), (expected[1], expected[0], expected[3], expected[2]))


@needs_native
@pytest.mark.parametrize(("B", "N", "M"), [(40, 64, 64), (40, 512, 90), (2, 513, 513), (1, 500, 530), (1, 5, 4000)])
def test_the_size_chooses(num_threads, B, N, M):
    x, y = _pair("lattice", B, N, M)
    for threads in (1, 2):
        num_threads(threads)
        assert equal(_op(x, y), reference.chamfer_distance(x, y, None, None))


def test_norms_and_reductions(device):
    x, y = clouds("random", 3, 20, device, torch.float64), clouds("random", 3, 30, device, torch.float64, seed=1)
    sq_dists = ((x[:, :, None] - y[:, None]) ** 2).sum(-1)
    d_xy, d_yx = sq_dists.amin(2), sq_dists.amin(1)
    close = torch.testing.assert_close
    close(ops.chamfer_distance(x, y), d_xy.mean() + d_yx.mean())
    close(ops.chamfer_distance(x, y, norm="l1"), d_xy.sqrt().mean() + d_yx.sqrt().mean())
    close(ops.chamfer_distance(x, y, reduction="sum"), d_xy.sum() + d_yx.sum())
    close(ops.chamfer_distance(x, y, "l1", "sum"), d_xy.sqrt().sum() + d_yx.sqrt().sum())
    close(ops.chamfer_distance(x, y, reduction="none"), (d_xy, d_yx))
    close(ops.chamfer_distance(x, y, "l1", "none"), (d_xy.sqrt(), d_yx.sqrt()))


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_ragged_mean_is_over_points_then_batch(device, norm):
    x, y = clouds("random", 2, 20, device), clouds("random", 2, 30, device, seed=1)
    lengths_x, lengths_y = torch.tensor([20, 4], device=device), torch.tensor([7, 30], device=device)
    alone = [
        ops.chamfer_distance(x[:1], y[:1, :7], norm),
        ops.chamfer_distance(x[1:, :4], y[1:], norm),
    ]
    ragged = ops.chamfer_distance(x, y, norm, lengths_x=lengths_x, lengths_y=lengths_y)
    torch.testing.assert_close(ragged, torch.stack(alone).mean())


def test_a_cloud_is_at_distance_0_from_itself(device):
    x = (clouds("random", 2, 100, device) + 1000).requires_grad_()
    distance = ops.chamfer_distance(x, x.detach(), norm="l1")
    distance.backward()
    assert distance == 0
    assert not x.grad.any()  # and no NaN from the square root


def test_other_dtypes_and_strides(device):
    x, y = clouds("random", 2, 50, device), clouds("random", 2, 60, device, seed=1)
    half = ops.chamfer_distance(x.half(), y.half())
    assert half.dtype == torch.float32
    assert torch.equal(half, ops.chamfer_distance(x.half().float(), y.half().float()))
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(ops.chamfer_distance(strided, y), ops.chamfer_distance(x, y))


def test_empty_batch(device):
    empty = torch.rand(0, 5, 3, device=device, requires_grad=True)
    d_xy, d_yx = ops.chamfer_distance(empty, torch.rand(0, 4, 3, device=device), reduction="none")
    assert d_xy.shape == (0, 5)
    assert d_yx.shape == (0, 4)
    total = ops.chamfer_distance(empty, empty, reduction="sum")
    total.backward()
    assert total == 0
    assert empty.grad.shape == empty.shape


def test_errors():
    x = torch.rand(2, 8, 3)
    bad = x.clone()
    bad[1, 0, 0] = -torch.inf
    lengths = torch.tensor([8, 0])
    for error, message, call in [
        (ValueError, "x must have at least one point, got [2, 0, 3]", lambda: ops.chamfer_distance(x[:, :0], x)),
        (ValueError, "y must have at least one point, got [2, 0, 3]", lambda: ops.chamfer_distance(x, x[:, :0])),
        (ValueError, "y must have shape [B, N, 3], got [2, 8, 2]", lambda: ops.chamfer_distance(x, x[..., :2])),
        (ValueError, "x must be finite, got -inf at [1, 0, 0]", lambda: ops.chamfer_distance(bad, x)),
        (ValueError, "x and y must have the same B, got 2 and 1", lambda: ops.chamfer_distance(x, x[:1])),
        (ValueError, "norm must be one of ('l2', 'l1'), got 'l3'", lambda: ops.chamfer_distance(x, x, "l3")),
        (
            ValueError,
            "reduction must be one of ('mean', 'sum', 'none'), got 'max'",
            lambda: ops.chamfer_distance(x, x, reduction="max"),
        ),
        (ValueError, "lengths_x must be at least 1, got 0", lambda: ops.chamfer_distance(x, x, lengths_x=lengths)),
        (
            ValueError,
            "lengths_y must be at most N=8, got 9",
            lambda: ops.chamfer_distance(x, x, lengths_y=lengths + 1),
        ),
        (
            TypeError,
            "x must be floating point, got torch.int64; call .float() on it",
            lambda: ops.chamfer_distance(x.long(), x),
        ),
    ]:
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value) == f"chamfer_distance: {message}"


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients(device, norm, reduction):
    x = clouds("random", 2, 9, device, torch.float64).requires_grad_()
    y = clouds("random", 2, 7, device, torch.float64, seed=1).requires_grad_()
    lengths = (torch.tensor([9, 4], device=device), torch.tensor([2, 7], device=device))
    for lengths_x, lengths_y in ((None, None), lengths):
        assert torch.autograd.gradcheck(
            lambda a, b, n=lengths_x, m=lengths_y: ops.chamfer_distance(a, b, norm, reduction, n, m),
            (x, y),
        )


def test_backward_equals_reference(device):
    x, y = clouds("integer", 2, 30, device), clouds("integer", 2, 50, device, seed=1)
    lengths = torch.tensor([30, 11], device=device)
    d_xy, d_yx, index_xy, index_yx = _op(x, y, lengths, None)
    arguments = (d_xy + 1, d_yx - 2, x, y, lengths, None, index_xy, index_yx)
    ours = torch.ops.jointmae.chamfer_distance_backward(*arguments)
    assert equal(ours, reference.chamfer_distance_backward(*arguments))


@needs_native
@pytest.mark.parametrize("B", [1, 2, 5])
def test_backward_has_the_same_bits_for_any_number_of_threads(num_threads, B):
    x, y = _pair("one place", B, 300, 200)
    lengths = torch.randint(1, 201, (B,), generator=torch.Generator().manual_seed(0))
    _, _, index_xy, index_yx = _op(x, y, None, lengths)
    arguments = (torch.randn(B, 300), torch.randn(B, 200), x, y, None, lengths, index_xy, index_yx)
    num_threads(1)
    expected = torch.ops.jointmae.chamfer_distance_backward(*arguments)
    for threads in (2, 3, 8):
        num_threads(threads)
        assert equal(torch.ops.jointmae.chamfer_distance_backward(*arguments), expected)
    rounded = reference.chamfer_distance_backward(*arguments)
    torch.testing.assert_close(expected, rounded, rtol=1e-4, atol=1e-4)  # other orders of up to 300 numbers


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_one_gradient_for_all_points(device, reduction):
    x, y = clouds("integer", 2, 30, device).requires_grad_(), clouds("integer", 2, 16, device, seed=1).requires_grad_()
    ops.chamfer_distance(x, y, reduction=reduction).backward()
    a, b = x.detach().requires_grad_(), y.detach().requires_grad_()
    d_xy, d_yx = ops.chamfer_distance(a, b, reduction="none")
    ones = torch.ones_like(d_xy), torch.ones_like(d_yx)
    weights = (1 / 60, 1 / 32) if reduction == "mean" else (1, 1)
    ((d_xy * ones[0]).sum() * weights[0] + (d_yx * ones[1]).sum() * weights[1]).backward()
    torch.testing.assert_close((x.grad, y.grad), (a.grad, b.grad))


def test_registration(device):
    x = clouds("random", 2, 9, device).requires_grad_()
    y = clouds("random", 2, 7, device, seed=1).requires_grad_()
    lengths = torch.tensor([5, 3], device=device)
    torch.library.opcheck(torch.ops.jointmae.chamfer_distance, (x, y, None, None))
    torch.library.opcheck(torch.ops.jointmae.chamfer_distance, (x.double(), y.double(), lengths, lengths))
    x, y = x.detach(), y.detach()
    d_xy, d_yx, index_xy, index_yx = _op(x, y)
    torch.library.opcheck(
        torch.ops.jointmae.chamfer_distance_backward, (d_xy, d_yx, x, y, None, lengths, index_xy, index_yx)
    )


def test_compile(device):
    compiled = torch.compile(lambda a, b: ops.chamfer_distance(a, b, "l1"), backend="aot_eager", fullgraph=True)
    x, y = clouds("random", 2, 40, device).requires_grad_(), clouds("random", 2, 30, device, seed=1)
    distance = compiled(x, y)
    torch.testing.assert_close(distance, ops.chamfer_distance(x, y, "l1"))
    distance.backward()
    assert x.grad is not None


@pytest.mark.parametrize("B", [1, 3, 40])
def test_same_bits(num_threads, B):
    x, y = clouds("random", B, 200, torch.device("cpu")), clouds("random", B, 300, torch.device("cpu"), seed=1)

    def call():
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        distances = ops.chamfer_distance(a, b, reduction="none")
        (distances[0].mean() + distances[1].mean()).backward()
        return distances[0].detach(), distances[1].detach(), a.grad, b.grad

    check_same_bits(call, num_threads)


def test_concurrent_and_forked():
    x = clouds("random", 8, 100, torch.device("cpu"))
    check_concurrent(lambda: _op(x, x + 0.1))
    check_fork(lambda: _op(x, x + 0.1))
