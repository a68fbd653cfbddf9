"""Which tokens the encoder sees, and the random numbers of one training step. B clouds, L tokens of one modality."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from jointmae import random
from jointmae.config import ModelConfig
from jointmae.random import Purpose


class Draws(NamedTuple):
    """All random numbers of one forward pass, uniform in [0, 1): a pure function of seed, epoch and sample ids."""

    view: Tensor  # [B, 3]
    mask_3d: Tensor  # [B, number of 3D tokens]
    mask_2d: Tensor  # [B, number of 2D tokens]
    drop_path: Tensor  # [B, num_layers, 2]


class Mask(NamedTuple):
    """Token numbers in random order: the visible ones and the hidden ones."""

    ids_keep: Tensor  # [B, visible] int64
    ids_hidden: Tensor  # [B, hidden] int64


def draw(config: ModelConfig, seed: int, epoch: int | Tensor, sample_ids: Tensor) -> Draws:
    """The random numbers of clouds `sample_ids` [B] int64 in this epoch."""

    def uniform(purpose: Purpose, *shape: int) -> Tensor:
        return random.uniform(random.keys(seed, epoch, sample_ids, purpose), *shape)

    return Draws(
        view=uniform(Purpose.VIEW, 3),
        mask_3d=uniform(Purpose.MASK_3D, num_3d_tokens(config, config.num_points)),
        mask_2d=uniform(Purpose.MASK_2D, config.num_2d_tokens),
        drop_path=uniform(Purpose.DROP_PATH, config.num_layers, 2),
    )


def num_3d_tokens(config: ModelConfig, num_points: int) -> int:
    """3D tokens of a cloud of so many points (D 4)."""
    return num_points // 32 if config.center_ratio else config.num_centers[1]


def random_mask(uniforms: Tensor, mask_ratio: float, first: Tensor | None = None) -> Mask:
    """Keeps the tokens with the smallest of `uniforms` [B, L]; hides ceil(mask_ratio * L) of them.

    Tokens of `first` [B, L] (True) come before all others.
    """
    L = uniforms.shape[1]
    if first is not None:
        uniforms = torch.where(first, uniforms, uniforms + 1)
    order = uniforms.argsort(dim=1, stable=True)  # [B, L]
    num_keep = L - math.ceil(mask_ratio * L)
    return Mask(order[:, :num_keep], order[:, num_keep:])


def mask_tokens(config: ModelConfig, draws: Draws, center_cells: Tensor | None) -> tuple[Mask, Mask | None]:
    """Masks of 3D and 2D tokens (section 3.1). `center_cells` [B, G] is the 2D token under each centre; None: no 2D."""
    mask_3d = random_mask(draws.mask_3d, config.mask_ratio)
    if center_cells is None:
        return mask_3d, None
    if config.mask_coupling == "independent":
        return mask_3d, random_mask(draws.mask_2d, config.mask_ratio)
    under = tokens_under(center_cells.gather(1, mask_3d.ids_keep), draws.mask_2d.shape[1])
    first = under if config.mask_coupling == "aligned" else ~under
    return mask_3d, random_mask(draws.mask_2d, config.mask_ratio, first)


def tokens_under(cells: Tensor, num_tokens: int) -> Tensor:
    """True [B, P] for the 2D tokens named in `cells` [B, G] (-1: none)."""
    flags = torch.zeros(cells.shape[0], num_tokens + 1, dtype=torch.bool, device=cells.device)
    slots = torch.where(cells >= 0, cells, num_tokens).long()  # a spare last slot for -1
    return flags.scatter(1, slots, True)[:, :num_tokens]


def visible_flags(mask: Mask) -> Tensor:
    """True [B, L] where a token is visible."""
    L = mask.ids_keep.shape[1] + mask.ids_hidden.shape[1]
    flags = torch.zeros(mask.ids_keep.shape[0], L, dtype=torch.bool, device=mask.ids_keep.device)
    return flags.scatter(1, mask.ids_keep, True)


def take(values: Tensor, ids: Tensor) -> Tensor:
    """Rows `ids` [B, M] of `values` [B, L, ...]: [B, M, ...]."""
    index = ids.view(*ids.shape, *[1] * (values.dim() - 2)).expand(*ids.shape, *values.shape[2:])
    return values.gather(1, index)
