"""Randomness is counter-based: fixed bits, uniform, independent between questions, and the same in a compiled graph."""

import pytest
import torch
from torch import Tensor

from jointmae.random import Purpose, epoch_order, fold, hashes, keys, permutation, subset, uniform

BIG = 2**32 + 7
GOLDEN_KEYS = [1080821490, 643842377, 444015058]
GOLDEN_UNIFORMS = [[12010402, 16526464, 1643638, 1428157]]  # times 2^24
GOLDEN_PERMUTATION = [[3, 2, 6, 7, 4, 0, 1, 5]]
GOLDEN_ORDER = [5, 6, 2, 0, 7, 4, 3, 1]


def ids(n: int, start: int = 0) -> Tensor:
    return torch.arange(start, start + n)


def mix_by_hand(x: int) -> int:
    """The mixer in Python's unbounded integers: what it would be with 32-bit wrap-around."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        x = ((x ^ (x >> shift)) * factor) % 2**32
    return x ^ (x >> 15)


def fold_by_hand(key: int, number: int) -> int:
    number %= 2**64
    return mix_by_hand(((mix_by_hand(key ^ (number >> 32)) + 0x9E3779B9) % 2**32) ^ (number % 2**32))


def chi_square(counts: Tensor) -> float:
    expected = counts.sum() / counts.numel()
    return float(((counts - expected) ** 2 / expected).sum())


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.double().flatten(), b.double().flatten()]))[0, 1])


def test_golden_values_never_change() -> None:
    key = keys(0, 0, ids(3), Purpose.MASK_3D)
    assert key.tolist() == GOLDEN_KEYS
    assert (uniform(key[:1], 4) * 2**24).long().tolist() == GOLDEN_UNIFORMS
    assert permutation(key[:1], 8).tolist() == GOLDEN_PERMUTATION
    assert epoch_order(1, 2, 8).tolist() == GOLDEN_ORDER


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**63 - 1, 2**64 - 1, -1])
@pytest.mark.parametrize("sample", [0, 5, 2**32, BIG, 2**63 - 1, -1])
def test_keys_equal_unbounded_arithmetic(seed: int, sample: int) -> None:
    expected = 0
    for number in (seed, Purpose.VIEW, 3, sample):
        expected = fold_by_hand(expected, int(number))
    assert keys(seed, 3, torch.tensor([sample]), Purpose.VIEW).item() == expected


def test_state_stays_in_32_bits_on_the_largest_inputs() -> None:
    extreme = torch.tensor([0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, -1, -(2**63)])
    key = keys(2**64 - 1, torch.tensor(2**63 - 1), extreme, Purpose.INIT)
    values = hashes(key, 1000)
    for state in (key, values, fold(key, extreme)):
        assert 0 <= int(state.min()) and int(state.max()) < 2**32
    assert all(len(row.unique()) == 1000 for row in values)


def test_high_bits_of_seed_epoch_and_id_count() -> None:
    base = keys(7, 7, torch.tensor([7]), Purpose.VIEW)
    assert keys(BIG, 7, torch.tensor([7]), Purpose.VIEW) != base
    assert keys(7, BIG, torch.tensor([7]), Purpose.VIEW) != base
    assert keys(7, 7, torch.tensor([BIG]), Purpose.VIEW) != base


def test_ids_of_one_epoch_have_distinct_keys() -> None:
    assert len(keys(3, 1, ids(200_000), Purpose.VIEW).unique()) == 200_000


def test_epoch_is_an_int_or_a_tensor_per_sample() -> None:
    per_sample = keys(0, torch.tensor([4, 5]), torch.tensor([9, 9]), Purpose.VIEW)
    assert per_sample[0] == keys(0, 4, torch.tensor([9]), Purpose.VIEW)
    assert per_sample[1] == keys(0, torch.tensor(5), torch.tensor([9]), Purpose.VIEW)


def test_ids_must_be_int64() -> None:
    with pytest.raises(TypeError, match="keys: sample_ids must be int64, got torch.int32"):
        keys(0, 0, torch.zeros(1, dtype=torch.int32), Purpose.VIEW)


def test_uniforms_are_uniform_within_a_sample_and_across_samples() -> None:
    draws = uniform(keys(0, 0, ids(2000), Purpose.SCALE), 100)
    assert draws.dtype == torch.float32 and draws.min() >= 0 and draws.max() < 1
    for values in (draws.flatten(), draws[:, 0], draws[0]):
        bins = 100 if values.numel() > 10_000 else 10
        limit = 148.2 if bins == 100 else 27.9  # chi-square, 99 and 9 degrees of freedom, p = 0.001
        assert chi_square(torch.histc(values, bins, 0, 1)) < limit


def test_one_coordinate_over_epochs_is_uniform() -> None:
    epochs = torch.arange(5000)
    draws = uniform(keys(0, epochs, torch.zeros_like(epochs), Purpose.VIEW), 1)
    assert chi_square(torch.histc(draws, 10, 0, 1)) < 27.9  # p = 0.001


def test_questions_are_independent() -> None:
    """Seeds, epochs, ids, purposes and folds one apart: 200,000 pairs correlate below 5 standard errors."""
    base = uniform(keys(0, 0, ids(2000), Purpose.VIEW), 100)
    others = [
        uniform(keys(1, 0, ids(2000), Purpose.VIEW), 100),
        uniform(keys(0, 1, ids(2000), Purpose.VIEW), 100),
        uniform(keys(0, 0, ids(2000, start=1), Purpose.VIEW), 100),
        uniform(fold(keys(0, 0, ids(2000), Purpose.VIEW), 1), 100),
        *(uniform(keys(0, 0, ids(2000), p), 100) for p in Purpose if p != Purpose.VIEW),
        base.roll(1, dims=1),
    ]
    for other in others:
        assert abs(correlation(base, other)) < 5 / 200_000**0.5


def test_permutations_are_permutations_and_every_place_is_equally_likely() -> None:
    orders = permutation(keys(0, 0, ids(4000), Purpose.MASK_3D), 16)  # [4000, 16]
    assert torch.equal(orders.sort(dim=1).values, torch.arange(16).expand(4000, 16))
    counts = torch.bincount((orders * 16 + torch.arange(16)).flatten(), minlength=256).double()
    assert chi_square(counts) < 310  # 225 degrees of freedom (rows and columns have fixed sums): p = 0.0002


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2048, 1024), (2048, 2048), (2048, 1), (10_000, 17), (5, 0)])
def test_a_subset_begins_the_permutation(n: int, m: int) -> None:
    key = torch.cat([keys(3, 1, ids(50), Purpose.SUBSET), torch.tensor([0, 2**31, 2**32 - 1])])
    assert torch.equal(subset(key, n, m), permutation(key, n)[:, :m])
    assert subset(key[:0], n, m).shape == (0, m)


def test_epochs_visit_every_sample_in_another_order() -> None:
    first, second = epoch_order(0, 0, 1000), epoch_order(0, 1, 1000)
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert not torch.equal(first, second)
    assert torch.equal(first, epoch_order(0, torch.tensor(0), 1000))


def test_empty_batches_and_shapes() -> None:
    none = keys(0, 0, ids(0), Purpose.VIEW)
    assert uniform(none, 3, 2).shape == (0, 3, 2)
    assert permutation(none, 5).shape == (0, 5)
    assert uniform(keys(0, 0, ids(2), Purpose.VIEW)).shape == (2,)


def test_a_sample_draws_the_same_alone_and_in_a_batch() -> None:
    together = uniform(keys(0, 3, ids(64), Purpose.SHIFT), 3)
    alone = torch.cat([uniform(keys(0, 3, torch.tensor([i]), Purpose.SHIFT), 3) for i in range(64)])
    assert torch.equal(together, alone)


def test_compiled_graph_gives_the_same_bits() -> None:
    def draw(epoch: Tensor, sample_ids: Tensor) -> tuple[Tensor, Tensor]:
        key = keys(2**40 + 3, epoch, sample_ids, Purpose.SUBSET)
        return uniform(key, 5), subset(key, 32, 32)

    compiled = torch.compile(draw, fullgraph=True)
    for epoch in (torch.tensor(0), torch.tensor(2**33)):
        for ours, theirs in zip(draw(epoch, ids(6, BIG)), compiled(epoch, ids(6, BIG)), strict=True):
            assert torch.equal(ours, theirs)
