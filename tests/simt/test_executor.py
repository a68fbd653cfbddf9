"""The executor itself: it runs small kernels right in every order, and notices each fault that can be planted."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from tests.simt.conftest import ASAN

ORDERS = (0, 1, 2, 3, 4)
ALL = 0xFFFFFFFF


@pytest.fixture
def module(simt: ModuleType) -> ModuleType:
    yield simt
    simt.set_order(0)


def reversed_blocks(module: ModuleType, without_barrier: bool = False, off_by_one: bool = False) -> bool:
    numbers = torch.randperm(640, dtype=torch.int32)
    out = torch.full_like(numbers, -1)
    module.reverse(numbers.data_ptr(), out.data_ptr(), 10, without_barrier, off_by_one)
    return torch.equal(out, numbers.view(10, 64).flip(1).flatten())


def test_shared_memory_and_barriers(module):
    for order in ORDERS:
        module.set_order(order)
        assert reversed_blocks(module)


def test_a_missing_barrier_gives_wrong_results(module):
    for order in ORDERS:
        module.set_order(order)
        assert not reversed_blocks(module, without_barrier=True)


def test_writes_outside_of_shared_memory_are_noticed(module):
    if ASAN:
        pytest.skip("AddressSanitizer ends the process: test_addresses_out_of_bounds_are_noticed")
    with pytest.raises(RuntimeError, match=r"reverse: block \d: wrote outside of its 256 bytes of shared memory"):
        reversed_blocks(module, off_by_one=True)


@pytest.mark.skipif(not ASAN, reason="needs AddressSanitizer, see conftest.py")
@pytest.mark.parametrize(
    ("blocks", "off_by_one", "report"), [(10, True, "use-after-poison"), (11, False, "heap-buffer-overflow")]
)
def test_addresses_out_of_bounds_are_noticed(module, run_python, blocks, off_by_one, report):
    """One word beyond the shared memory, and one block beyond the tensors."""
    done = run_python(f"""
import torch
from pathlib import Path
from tests.simt.conftest import load_simt

module = load_simt(Path({module.__file__!r}))
numbers = torch.ones(640, dtype=torch.int32)
module.reverse(numbers.data_ptr(), numbers.data_ptr(), {blocks}, False, {off_by_one})
""")
    assert done.returncode != 0 and f"AddressSanitizer: {report}" in done.stderr, done.stderr


def test_shuffles(module):
    numbers = torch.randint(-100, 100, (32,), dtype=torch.int32)
    out = torch.zeros(1, dtype=torch.int32)
    for order in ORDERS:
        module.set_order(order)
        module.sum(numbers.data_ptr(), out.data_ptr(), ALL, False)
        assert out == numbers.sum()


def test_wrong_masks_and_lanes_that_have_left_are_noticed(module):
    numbers, out = torch.ones(32, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="sum: .*__shfl_down_sync with a mask that lacks the calling lane"):
        module.sum(numbers.data_ptr(), out.data_ptr(), 0xFFFF, False)
    for order in ORDERS:
        module.set_order(order)
        with pytest.raises(
            RuntimeError, match="waits for lane .* has exited|threads wait for ever: .*__shfl_down_sync"
        ):
            module.sum(numbers.data_ptr(), out.data_ptr(), ALL, True)


def test_a_barrier_that_not_all_threads_reach_is_noticed(module):
    out = torch.zeros(64, dtype=torch.int32)
    module.divergent(out.data_ptr(), False)
    assert out.all()
    with pytest.raises(RuntimeError, match="divergent: threads wait for ever: .* at __syncthreads; .* 32 threads"):
        module.divergent(out.data_ptr(), True)


def test_lanes_in_different_words_are_noticed(module):
    out = torch.zeros(32, dtype=torch.int32)
    module.words(out.data_ptr(), False)
    assert out.all()
    with pytest.raises(RuntimeError, match="words: .* where other lanes of the warp are at __all_sync|__any_sync"):
        module.words(out.data_ptr(), True)


def test_clusters(module):
    for order in ORDERS:
        module.set_order(order)
        out = torch.full((4,), -1, dtype=torch.int32)
        module.cluster(out.data_ptr(), False, False)
        assert out.tolist() == [1, 0, 3, 2]


def test_cluster_faults_are_noticed(module):
    def noticed(order: int, **faults: bool) -> bool:
        module.set_order(order)
        out = torch.full((4,), -1, dtype=torch.int32)
        try:
            module.cluster(out.data_ptr(), faults.get("first", False), faults.get("last", False))
        except RuntimeError as error:
            assert "threads have begun to exit" in str(error)
            return True
        return out.tolist() != [1, 0, 3, 2]

    assert all(any(noticed(order, **{fault: True}) for order in ORDERS) for fault in ("first", "last"))


def test_grids(module):
    for order in ORDERS:
        module.set_order(order)
        counter, out = torch.zeros(1, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
        module.grid(counter.data_ptr(), out.data_ptr(), True, False)
        assert out.tolist() == [4] * 4
        counter.zero_()
        module.grid(counter.data_ptr(), out.data_ptr(), True, True)
        assert out.tolist() != [4] * 4
    with pytest.raises(RuntimeError, match="grid_sync in a launch that is not cooperative"):
        module.grid(counter.data_ptr(), out.data_ptr(), False, False)


def test_limits_are_kept(module):
    module.set_limits(num_sms=3)
    try:
        counter, out = torch.zeros(1, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
        with pytest.raises(RuntimeError, match="a cooperative launch of more blocks than fit at once"):
            module.grid(counter.data_ptr(), out.data_ptr(), True, False)
        module.set_limits(max_shared_bytes=128)
        with pytest.raises(RuntimeError, match="asks for 256 bytes of shared memory, a block has 128"):
            reversed_blocks(module)
        module.set_limits(capability=80)
        with pytest.raises(RuntimeError, match="clusters need capability 90"):
            module.cluster(out.data_ptr(), False, False)
    finally:
        module.set_limits()
