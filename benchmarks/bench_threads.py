"""Our threads and torch's in turn: ops between matrix products must take no longer than each by itself.

torch's threads may spin for a while after their work (`OMP_WAIT_POLICY`), ours sleep; were both to want the same cores,
the alternating calls would be the slower ones.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.clouds import objects
from jointmae import ops

TURNS = 16


@pytest.mark.parametrize("size", [128, 512])
def bench_threads(compare, device, size):
    if device.type != "cpu":
        pytest.skip("is about the threads of the CPU")
    points, matrix = objects(8, 512, device), torch.randn(size, size)
    product = torch.empty_like(matrix)

    def sample() -> torch.Tensor:
        return ops.farthest_point_sample(points, 128)

    def multiply() -> torch.Tensor:
        return torch.matmul(matrix, matrix, out=product)

    def alternating() -> torch.Tensor:
        for _ in range(TURNS):
            samples = sample()
            multiply()
        return samples

    def one_after_the_other() -> torch.Tensor:
        for _ in range(TURNS):
            samples = sample()
        for _ in range(TURNS):
            multiply()
        return samples

    compare(
        f"threads: {TURNS} samplings, {TURNS} products of {size}x{size}",
        {"alternating": alternating, "one after the other": one_after_the_other},
        [()],
    )
