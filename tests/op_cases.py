"""What the tests of every op have in common: inputs that are hard, and properties that all ops have."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from jointmae.ops import native

# Names of `clouds` below.
KINDS = ("integer", "random", "duplicates", "equal", "huge", "overflowing", "tiny")
SIZES = ((2, 1), (3, 17), (2, 64), (1, 300), (2, 1500))  # B, N: around the vector, block and tile sizes


def clouds(
    kind: str, B: int, N: int, device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Tensor:
    """Points [B, N, 3]: values that round, overflow, underflow or tie."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(B, N, 3, generator=generator, dtype=torch.float64)
    if kind == "integer":
        points = (points * 2).round()  # few values, so many ties
    elif kind == "duplicates":
        points[:, (N + 1) // 2 :] = points[:, : N // 2].clone()
    elif kind == "equal":
        points[:] = 0.3
    elif kind == "huge":
        points *= 1e18  # squares near the largest float32
    elif kind == "overflowing":
        points = points.sign() * points.abs().clamp(0.1, 3) * 1e38  # squares are infinite
    elif kind == "tiny":
        points *= 1e-38  # squares are 0
    return points.to(device, dtype)


def equal(a: Any, b: Any) -> bool:
    """The same bits, in tensors or tuples of them."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))


def check_same_bits(call: Callable[[], Any], num_threads: Callable[[int], None]) -> None:
    """The same bits on a second run and for any number of threads, more than there are cores too."""
    num_threads(1)
    expected = call()
    for threads in (1, 2, 7):
        num_threads(threads)
        assert equal(call(), expected), f"other bits with {threads} threads"


def check_concurrent(call: Callable[[], Any]) -> None:
    """Four Python threads at once get what one gets."""
    expected = call()
    results: list[Any] = [None] * 4

    def run(i: int) -> None:
        for _ in range(5):
            results[i] = call()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(equal(result, expected) for result in results)


def check_fork(call: Callable[[], Any]) -> None:
    """A forked child whose parent has used the thread pool can use it too."""
    if native.kernels is None:
        pytest.skip("needs native kernels: PyTorch's own threads do not survive a fork")
    expected = call()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        sender.send(equal(call(), expected))
        os._exit(0)

    process = context.Process(target=child)
    process.start()
    assert receiver.poll(60), "the forked child hangs"
    assert receiver.recv() is True
    process.join(60)


def isa_levels() -> list[str]:
    """The instruction sets that this machine can be made to use."""
    levels = ["scalar", "avx2", "avx512"]
    return levels[: levels.index(native.kernels.isa()) + 1] if native.kernels is not None else []
