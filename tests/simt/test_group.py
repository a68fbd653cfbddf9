"""What `tests/test_group.py` does not reach of the CUDA kernels: each way to cut rows, long lists, bad indices."""

from __future__ import annotations

import importlib

import pytest
import torch

from jointmae.ops import native, reference

op = importlib.import_module("jointmae.ops.group")  # the name is the function

needs_native = pytest.mark.skipif(native.kernels is None, reason="needs the native kernels of the CPU to compare with")
# Of a cloud that is looked through once, once per range of 1,024 targets, and partitioned by range first.
NUM_TARGETS = (1, 7, 1024, 1025, 2500, 8192, 8193, 10_000)


@pytest.mark.parametrize("row_bytes", [1, 2, 3, 4, 6, 8, 12, 24, 16, 48, 4096, 16384, 33_000])
def test_rows_of_any_size(device, row_bytes):
    features = torch.randint(256, (2, 5, row_bytes), dtype=torch.uint8)
    indices = torch.randint(5, (2, 3, 3))
    assert torch.equal(op._cuda(features, indices), reference.group(features, indices))


@pytest.mark.parametrize("offset", range(17))
def test_addresses_that_are_not_aligned(device, offset):
    features = torch.randint(256, (2 * 6 * 32 + 32,), dtype=torch.uint8)[offset:][: 2 * 6 * 32].view(2, 6, 32)
    indices = torch.randint(6, (2, 4, 2))
    assert torch.equal(op._cuda(features, indices), reference.group(features, indices))


def test_bad_indices(device, monkeypatch):
    monkeypatch.setattr(op, "values_are_checked", lambda tensor: False)
    bad = torch.tensor([-1, 5, 2**40, -(2**63), 2**63 - 1, 2**32, -(2**32)])
    indices = torch.stack([bad, torch.tensor([0, 3, 4, 3, 0, 2, 2])])[None]
    for C in (1, 3, 4):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            features = torch.randn(1, 5, C).to(dtype)
            out = op._cuda(features, indices)
            assert out[0, 0].isnan().all()
            assert torch.equal(out[0, 1], features[0, indices[0, 1]])
            grad = torch.randn(1, 2, 7, C).to(dtype)
            torch.testing.assert_close(
                op._backward_cuda(grad, indices, 5), reference.group_backward(grad[:, 1:], indices[:, 1:], 5)
            )


@needs_native
@pytest.mark.parametrize("N", NUM_TARGETS)
def test_backward_has_the_bits_of_the_cpu(device, N):
    indices = torch.randint(N, (2, 9001, 1))
    indices[0, :4000] %= 3  # long lists
    grad = torch.randn(2, 9001, 1, 1)
    assert torch.equal(op._backward_cuda(grad, indices, N), op._backward_cpu(grad, indices, N))


@needs_native
@pytest.mark.parametrize("N", [3000, 9000])
def test_one_list_for_all(device, N):
    indices = torch.full((1, 2000, 1), N - 2)
    grad = torch.randn(1, 2000, 1, 4)
    assert torch.equal(op._backward_cuda(grad, indices, N), op._backward_cpu(grad, indices, N))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("C", [1, 4])
def test_every_half_number_is_read_right(device, dtype, C):
    grad = torch.arange(2**16).to(torch.uint16).view(dtype).view(1, -1, 1, 1).expand(-1, -1, -1, C)[:, ::7]
    indices = torch.arange(grad.shape[1]).view(1, -1, 1)
    out = op._backward_cuda(grad, indices, grad.shape[1])
    assert torch.equal(out.view_as(grad).nan_to_num(nan=3), grad.nan_to_num(nan=3))
