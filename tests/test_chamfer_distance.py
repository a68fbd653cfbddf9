from __future__ import annotations

import pytest
import torch

from jointmae import ops
from jointmae.ops import reference
from tests.op_cases import KINDS, SIZES, check_concurrent, check_fork, check_same_bits, clouds, equal


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
