"""Memory of large results, which the next ones are given (csrc/common/kept_block.h)."""

from __future__ import annotations

import gc
import threading

import pytest
import torch

from jointmae import ops
from jointmae.ops import native

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


def test_results_may_be_changed_in_place():
    features, indices = torch.randn(2, 512, 48, requires_grad=True), torch.randint(512, (2, 256, 16))
    groups = ops.group(features, indices)
    assert groups.nbytes > MB and not groups._is_view()
    groups.add_(1).sum().backward()
    assert features.grad is not None


@pytest.mark.parametrize("shape", [(0,), (4, 0, 3), ()])
def test_nothing_and_little(shape):
    assert native.new_empty(torch.empty(0), *shape).shape == shape


def test_given_back_and_used_again():
    first = new(5 * MB)
    where, view = first.data_ptr(), first[7:]
    del first
    gc.collect()
    assert new(5 * MB).data_ptr() != where  # a view still holds it
    del view
    gc.collect()
    assert new(5 * MB - 64).data_ptr() == where


def test_no_more_than_its_limit_is_kept():
    limit = native.kernels.KEPT_BYTES
    blocks = [native.kernels.KeptBlock(40 * MB) for _ in range(limit // (40 * MB) + 3)]
    assert sum(memoryview(block).nbytes for block in blocks) > limit
    del blocks
    assert 0 < native.kernels.kept_bytes() <= limit
    before = native.kernels.kept_bytes()
    del_at_once = native.kernels.KeptBlock(limit + MB)
    del del_at_once
    assert native.kernels.kept_bytes() == before


def test_more_than_there_is():
    with pytest.raises(MemoryError):
        native.kernels.KeptBlock(1 << 60)


def test_old_contents_do_not_show():
    """Whatever a result's memory held before, the op writes all of it."""
    points = torch.randn(8, 512, 3) + torch.tensor([0.0, 0.0, 4.0])
    queries = points[:, :256]
    camera, intrinsics = torch.eye(4)[:3].expand(8, 1, 3, 4), torch.tensor([[60.0, 0, 80], [0, 60, 80], [0, 0, 1]])

    def results():
        leaf = points.clone().requires_grad_()
        sq_dists, indices = ops.knn(queries, leaf, 64)
        groups = ops.group(leaf, indices)
        drawn = ops.project_points(leaf, camera, intrinsics, (160, 160), 2, "soft")
        (groups.sum() + sq_dists.sum() + drawn.depth.sum() + drawn.coverage.sum()).backward()
        values = (sq_dists, indices, groups, drawn.depth, drawn.index, drawn.coverage, leaf.grad)
        return [value.detach().clone() for value in values]

    expected = results()
    for size in range(2, 12, 2):  # of each size one that is full of NaN
        spoilt = [new(size * MB).fill_(torch.nan) for _ in range(8)]
        del spoilt
    for value, wanted in zip(results(), expected, strict=True):
        assert torch.equal(value, wanted)


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
