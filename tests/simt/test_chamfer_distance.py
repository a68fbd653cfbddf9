"""What `tests/test_chamfer_distance.py` does not reach of the CUDA kernels: each path at any size, bad values."""

from __future__ import annotations

import importlib

import pytest
import torch

from jointmae.ops import native, reference
from tests.op_cases import KINDS, clouds, equal

op = importlib.import_module("jointmae.ops.chamfer_distance")  # the name is the function
BY_SIZE, LARGE = 0, 1
# A tiny set with one and with two rows a lane, a large one with 4 (70, 257) and with 8 (200).
SIZES = [(1, 1), (16, 16), (32, 32), (24, 17), (1, 40), (40, 1), (64, 64), (100, 70), (130, 257), (200, 150)]
needs_native = pytest.mark.skipif(native.kernels is None, reason="needs the native kernels of the CPU to compare with")


@pytest.fixture(params=[BY_SIZE, LARGE])
def path(request, device, monkeypatch):
    monkeypatch.setattr(op, "_PATH", request.param)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("N", "M"), SIZES)
def test_equals_reference(path, N, M, kind):
    x, y = clouds(kind, 3, N, "cpu"), clouds(kind, 3, M, "cpu", seed=1)
    y[:, 0] = x[:, -1]
    assert equal(op._cuda(x, y, None, None), reference.chamfer_distance(x, y, None, None))


@pytest.mark.parametrize("B", [1, 9, 17])
def test_many_sets(path, B):
    x, y = clouds("random", B, 16, "cpu"), clouds("random", B, 15, "cpu", seed=1)
    assert equal(op._cuda(x, y, None, None), reference.chamfer_distance(x, y, None, None))


@pytest.mark.parametrize("num_sms", [1, 4, 132])
@pytest.mark.parametrize(("N", "M"), [(700, 1500), (1500, 300), (257, 1025)])
def test_any_number_of_ranges(device, on_simt, num_sms, N, M):
    on_simt.set_limits(num_sms=num_sms)
    x, y = clouds("integer", 2, N, device), clouds("integer", 2, M, device, seed=1)
    lengths = torch.tensor([N // 2 + 1, N])
    assert equal(op._cuda(x, y, lengths, None), reference.chamfer_distance(x, y, lengths, None))


@pytest.mark.parametrize(("N", "M"), [(20, 30), (300, 90)])
def test_bad_values(path, monkeypatch, N, M):
    monkeypatch.setattr(op, "_check_values", lambda *_: None)
    x, y = clouds("random", 4, N, "cpu"), clouds("random", 4, M, "cpu", seed=1)
    x[0], y[1] = torch.nan, torch.inf
    x[2, 3], y[2, 5], x[2, 6], y[2, 0] = torch.nan, -torch.nan, -torch.inf, torch.nan
    x[3, :10], y[3, 20:] = torch.nan, -torch.inf
    lengths_x, lengths_y = torch.tensor([0, N, N + 5, 9]), torch.tensor([-(2**40), 2**40, M, 9])
    kept_x, kept_y = lengths_x.clamp(1, N), lengths_y.clamp(1, M)
    d_xy, d_yx, index_xy, index_yx = op._cuda(x, y, lengths_x, lengths_y)
    assert ((index_xy >= 0) & (index_xy < kept_y[:, None])).all()
    assert ((index_yx >= 0) & (index_yx < kept_x[:, None])).all()
    assert not d_xy.masked_select(torch.arange(N) >= kept_x[:, None]).any()
    assert d_xy[0, 0].isnan()
    # A point that is nowhere is nobody's nearest, and others keep theirs.
    good_x, good_y = x[2].isfinite().all(-1), y[2].isfinite().all(-1)
    d, expected, _, _ = reference.chamfer_distance(x[2:3, good_x], y[2:3, good_y], None, None)
    assert equal((d_xy[2, good_x], d_yx[2, good_y]), (d[0], expected[0]))


@needs_native
@pytest.mark.parametrize(("N", "M"), [*SIZES, (700, 300)])
def test_backward_has_the_bits_of_the_cpu(path, N, M):
    x, y = clouds("random", 3, N, "cpu"), clouds("random", 3, M, "cpu", seed=1)
    y[1] = 3 + y[1] / 10  # long lists
    lengths_x, lengths_y = torch.tensor([N, N, N // 2 + 1]), torch.tensor([M // 3 + 1, M, M])
    for lengths in ((None, None), (lengths_x, lengths_y)):
        d_xy, d_yx, index_xy, index_yx = reference.chamfer_distance(x, y, *lengths)
        arguments = (torch.randn_like(d_xy), torch.randn_like(d_yx), x, y, *lengths, index_xy, index_yx)
        assert equal(op._backward_cuda(*arguments), op._backward_cpu(*arguments))


@needs_native
@pytest.mark.parametrize(("N", "M"), [(20, 30), (300, 90)])
def test_bad_indices_count_nowhere(path, N, M):
    x, y = clouds("random", 2, N, "cpu"), clouds("random", 2, M, "cpu", seed=1)
    d_xy, d_yx, index_xy, index_yx = reference.chamfer_distance(x, y, None, None)
    bad = torch.tensor([-1, M, 2**32, 2**32 + 1, -(2**63), 2**63 - 1])
    index_xy[:, 3:9] = bad
    without = index_xy.clone()
    without[:, 3:9] = 0
    grad_d_xy, grad_d_yx = torch.randn_like(d_xy), torch.randn_like(d_yx)
    grads = op._backward_cuda(grad_d_xy, grad_d_yx, x, y, None, None, index_xy, index_yx)
    grad_d_xy[:, 3:9] = 0
    expected = op._backward_cpu(grad_d_xy, grad_d_yx, x, y, None, None, without, index_yx)
    assert equal(grads, expected)


@needs_native
def test_padding_may_be_anything(path):
    x, y = clouds("random", 2, 40, "cpu"), clouds("random", 2, 50, "cpu", seed=1)
    lengths = torch.tensor([7, 30])
    index = reference.chamfer_distance(x, y, lengths, lengths)[2:]
    grads = torch.randn(2, 40), torch.randn(2, 50)
    expected = op._backward_cpu(*grads, x, y, lengths, lengths, *index)
    padding_x, padding_y = torch.arange(40) >= lengths[:, None], torch.arange(50) >= lengths[:, None]
    x[padding_x], y[padding_y] = torch.nan, torch.inf
    assert equal(op._backward_cuda(*grads, x, y, lengths, lengths, *index), expected)
