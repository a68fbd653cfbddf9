"""Memory of large results, which the next ones are given (csrc/common/kept_memory.h)."""

from __future__ import annotations

import threading

import pytest
import torch

from jointmae import ops
from jointmae.ops import native
from tests.op_cases import every_op

if native.kernels is None:
    pytest.skip("needs native kernels", allow_module_level=True)
MB = 1 << 20


def new(num_bytes, dtype=torch.float32):
    return native.new_empty(torch.empty(0), num_bytes // dtype.itemsize, dtype=dtype)


def test_shape_dtype_and_no_overlap():
    a = native.new_empty(torch.empty(0), 3, 256, 512)
    b = native.new_empty(a, 3, 256, 512, dtype=torch.int64)
    assert a.shape == b.shape and a.dtype == torch.float32 and b.dtype == torch.int64
    a.fill_(1)
    b.fill_(-1)
    assert (a == 1).all() and (b == -1).all()


@pytest.mark.parametrize("dtype", native._DLPACK_TYPES)
def test_every_dtype(dtype):
    values = native.new_empty(torch.empty(0), 7, 1 << 18, dtype=dtype)
    assert (values.dtype, values.shape, values.is_contiguous()) == (dtype, (7, 1 << 18), True)
    assert (values.fill_(3)[5, 1:9] == 3).all()


def test_results_may_be_changed_in_place():
    """Autograd forbids it of a view that an op made."""
    features, indices = torch.randn(2, 512, 48, requires_grad=True), torch.randint(512, (2, 256, 16))
    groups = ops.group(features, indices)
    assert groups.nbytes > MB
    groups.add_(1).sum().backward()
    assert features.grad is not None


@pytest.mark.parametrize("shape", [(0,), (4, 0, 3), ()])
def test_nothing_and_little(shape):
    assert native.new_empty(torch.empty(0), *shape).shape == shape


def test_given_back_and_used_again():
    first = new(5 * MB)
    where, view = first.data_ptr(), first[7:]
    del first
    assert new(5 * MB).data_ptr() != where  # a view still holds it
    del view
    assert new(5 * MB - 64).data_ptr() == where


def test_no_more_than_its_limit_is_kept():
    limit = native.kernels.KEPT_BYTES
    results = [new(40 * MB) for _ in range(limit // (40 * MB) + 3)]
    assert sum(result.nbytes for result in results) > limit
    results.clear()
    before = native.kernels.kept_bytes()
    assert 0 < before <= limit
    too_large = new(limit + MB)
    del too_large
    assert native.kernels.kept_bytes() == before


def test_a_tensor_that_nobody_takes_over():
    where = new(24 * MB).data_ptr()
    native.kernels.new_kept_tensor((6 * MB,), 2, 32)
    assert new(24 * MB).data_ptr() == where


@pytest.mark.parametrize("shape", [(1 << 50,), (1 << 40, 1 << 40), (1 << 31, 1 << 31)])
def test_more_than_there_is(shape):
    with pytest.raises(MemoryError):
        native.kernels.new_kept_tensor(shape, 2, 32)
    with pytest.raises(RuntimeError, match="(?i)allocate|overflow|too large|invalid"):  # PyTorch's own words
        native.new_empty(torch.empty(0), *shape)


@pytest.mark.parametrize("name", every_op(torch.device("cpu")))
def test_old_contents_do_not_show(name, monkeypatch):
    """Whatever a result's memory held before, the op writes all of it."""
    call, inputs = every_op(torch.device("cpu"))[name]
    expected = [output.clone() for output in call(*inputs)]
    monkeypatch.setattr(native, "_KEPT_FROM", 1)
    spoilt = [new(size * MB).fill_(torch.nan) for size in (2, 4) for _ in range(12)]
    before = {values.data_ptr() for values in spoilt}
    del spoilt
    outputs = call(*inputs)
    if "farthest" not in name and "chamfer" not in name:  # their results are small
        assert any(output.untyped_storage().data_ptr() in before for output in outputs)
    for output, wanted in zip(outputs, expected, strict=True):
        assert torch.equal(output, wanted)


def test_many_threads():
    failed = []

    def work(seed):
        for i in range(200):
            mine = new((2 + (seed + i) % 3 * 2) * MB, torch.int64).fill_(seed)
            if not (mine == seed).all():
                failed.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_forked_child_has_its_own(run_python):
    code = """
import os, torch
from jointmae.ops import native
torch.set_num_threads(1)  # torch's own threads do not survive a fork
one = native.new_empty(torch.empty(0), 1 << 20)
where = one.fill_(1).data_ptr()
del one
child = os.fork()
if child == 0:
    mine = native.new_empty(torch.empty(0), 1 << 20).fill_(2)
    os._exit(0 if mine.data_ptr() != where and (mine == 2).all() else 1)
assert os.waitpid(child, 0)[1] == 0
assert native.new_empty(torch.empty(0), 1 << 20).data_ptr() == where
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
