"""Masks: how many, how random, and how the two modalities' masks may be tied."""

from __future__ import annotations

import math

import torch

from jointmae.config import ModelConfig
from jointmae.model.masking import draw, mask_tokens, random_mask, take, tokens_under, visible_flags
from tests.models import batch, furniture, micro_config, micro_model


def test_numbers_of_visible_tokens_are_the_papers():
    config = ModelConfig()
    mask_3d, mask_2d = mask_tokens(config, draw(config, 0, 0, torch.arange(3)), torch.zeros(3, 64, dtype=torch.int32))
    assert (mask_3d.ids_keep.shape[1], mask_3d.ids_hidden.shape[1]) == (16, 48)
    assert (mask_2d.ids_keep.shape[1], mask_2d.ids_hidden.shape[1]) == (49, 147)


def test_hidden_tokens_are_rounded_up():
    for L in range(4, 50):
        mask = random_mask(torch.rand(2, L), 0.75)
        assert mask.ids_hidden.shape[1] == math.ceil(0.75 * L)


def test_every_token_is_on_one_side():
    mask = random_mask(torch.rand(5, 64), 0.75)
    assert torch.cat(mask, dim=1).sort(1).values.eq(torch.arange(64)).all()
    flags = visible_flags(mask)
    assert flags.sum(1).eq(16).all() and flags.gather(1, mask.ids_keep).all()


def test_no_token_is_seen_more_often_than_another():
    """The family has a mask that always shows token 0 of sample 0."""
    config = micro_config()
    seen = torch.zeros(8, 16)
    for epoch in range(400):
        mask, _ = mask_tokens(config, draw(config, 0, epoch, torch.arange(8)), None)
        seen += visible_flags(mask)
    assert (seen / 400 - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / 400)


def test_masks_of_the_modalities_are_independent_by_default():
    draws = draw(micro_config(), 0, 0, torch.arange(4000))
    a = draws.mask_3d[:, 0] < draws.mask_3d[:, 1]
    b = draws.mask_2d[:, 0] < draws.mask_2d[:, 1]
    assert 0.22 < (a & b).float().mean() < 0.28


def test_coupled_masks_prefer_what_they_say():
    points, up, draws = batch(micro_config(), 6)
    for coupling, wanted in (("aligned", True), ("complement", False)):
        inputs = micro_model(mask_coupling=coupling).prepare(points, up, draws)
        under = tokens_under(take(inputs.center_cells, inputs.mask_3d.ids_keep), 16)  # [B, P]
        visible = visible_flags(inputs.mask_2d)
        pool = under if wanted else ~under
        chosen = (visible & pool).sum(1)
        assert torch.equal(chosen, pool.sum(1).clamp(max=visible.sum(1)))


def test_draws_are_a_function_of_seed_epoch_and_sample_alone():
    config = micro_config()
    whole = draw(config, 3, 2, torch.arange(10))
    parts = [draw(config, 3, 2, ids) for ids in torch.arange(10).split(3)]
    for name in whole._fields:
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
        assert not torch.equal(getattr(whole, name), getattr(draw(config, 3, 3, torch.arange(10)), name))
        assert not torch.equal(getattr(whole, name), getattr(draw(config, 4, 2, torch.arange(10)), name))


def test_take_gathers_rows_of_any_rank():
    values = torch.arange(2 * 5 * 3).view(2, 5, 3)
    ids = torch.tensor([[4, 0], [1, 1]])
    assert torch.equal(take(values, ids), torch.stack([values[0, [4, 0]], values[1, [1, 1]]]))
    assert torch.equal(take(values[..., 0], ids), take(values, ids)[..., 0])


def test_valid_pairs_are_few_and_counted(record_property):
    """Independent masks leave few 2D-3D pairs (docs/deviations.md, D 12): measured here on real shapes."""
    config = ModelConfig()
    clouds = furniture()
    model = micro_model(num_points=2048, num_centers=(256, 64), image_size=224)
    ids = torch.arange(16)
    inputs = model.prepare(clouds.points[ids], clouds.up[ids], draw(config, 0, 0, ids))
    cells_3d = take(inputs.center_cells, inputs.mask_3d.ids_keep)
    pairs = (cells_3d[:, :, None] == inputs.mask_2d.ids_keep[:, None]).sum((1, 2))
    assert torch.equal(model.valid_pairs(inputs), pairs)
    mean = pairs.float().mean()
    record_property("valid 2D-3D pairs of 784", mean.item())
    print(f"valid pairs of {16 * 49}: {mean:.1f}")
    assert 1 < mean < 16


def test_more_pairs_are_valid_in_larger_cells_and_with_aligned_masks():
    """The ways that D 12 names; masks that avoid each other have next to none, and 3D alone has none."""

    def pairs(**changes):
        model = micro_model(**changes)
        points, up, draws = batch(model.config, size=8)
        return model.valid_pairs(model.prepare(points, up, draws))

    few = pairs().float().mean()
    assert pairs(align_cells=2).float().mean() > 1.5 * few and pairs(mask_coupling="aligned").float().mean() > 1.5 * few
    assert pairs(mask_coupling="complement").float().mean() < few
    assert torch.equal(pairs(modality="3d"), torch.zeros(8, dtype=torch.int64))
