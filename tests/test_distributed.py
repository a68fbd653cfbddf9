"""Processes that train together: who does what."""

from __future__ import annotations

import pytest
import torch

from jointmae import random
from jointmae.distributed import World, shares

SIZES = [1, 2, 3, 4, 7, 8, 64, 1000, 4095, 4096]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [1, 128, 4096, 5000])
def test_shares_are_disjoint_and_complete(size, batch):
    """Without processes: a sampler is a function."""
    order = random.epoch_order(0, 3, 6000)
    ids = order[:batch]
    parts = [World(rank, size).share(ids) for rank in {0, 1 % size, size - 1}] and [ids[s] for s in shares(batch, size)]
    assert torch.equal(torch.cat(parts), ids)
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("size", range(1, 4097, 13))
def test_the_order_of_an_epoch_does_not_depend_on_the_number_of_processes(size):
    order = random.epoch_order(7, 1, 5000)
    positions = torch.cat([torch.arange(5000)[s] for s in shares(5000, size)])
    assert torch.equal(order[positions], order) and len(positions.unique()) == 5000
