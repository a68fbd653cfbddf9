"""Augmentation on the device, a batch at a time, from counter-based keys.

B clouds, N points each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jointmae import random
from jointmae.config import Augmentation
from jointmae.data.normalize import normalize_unit_sphere
from jointmae.random import Purpose


def augment(
    kind: Augmentation, points: Tensor, up: Tensor, ids: Tensor, epoch: int | Tensor, seed: int, normalize: bool = True
) -> Tensor:
    """Points [B, N, 3] of clouds `ids` [B] with up axes [B, 3] as a model gets them in an epoch of training: [B, N, 3].

    Turned first, so that the axes of the scale are not those of the cloud; in the unit sphere with `normalize`.
    """
    if "rotate" in kind:
        points = rotate_about(points, up, random.keys(seed, epoch, ids, Purpose.ROTATE))
    if "scale+shift" in kind:
        scale_keys, shift_keys = (random.keys(seed, epoch, ids, purpose) for purpose in (Purpose.SCALE, Purpose.SHIFT))
        return scale_and_shift(points, scale_keys, shift_keys, normalize=normalize)
    return normalize_unit_sphere(points) if normalize else points


def rotate_about(points: Tensor, up: Tensor, keys: Tensor) -> Tensor:
    """Points [B, N, 3] turned about their unit `up` axes [B, 3] by random angles; keys int64 [B]: [B, N, 3]."""
    angle = (2 * math.pi * random.uniform(keys, 1, 1)).to(points.dtype)  # [B, 1, 1]
    axis = up[:, None].to(points.dtype)  # [B, 1, 3]
    along = (points * axis).sum(-1, keepdim=True) * axis  # [B, N, 3]
    across = torch.linalg.cross(axis.expand_as(points), points)
    turned: Tensor = along + angle.cos() * (points - along) + angle.sin() * across  # Rodrigues' formula
    return turned


def scale_and_shift(
    points: Tensor,
    scale_keys: Tensor,
    shift_keys: Tensor,
    scale: tuple[float, float] = (2 / 3, 3 / 2),
    shift: float = 0.2,
    normalize: bool = True,
) -> Tensor:
    """Scale each axis by U(scale), shift each by U(-shift, shift), then centre and scale into the unit sphere.

    `points` [B, N, 3]; keys int64 [B], from `random.keys` for `Purpose.SCALE` and `Purpose.SHIFT`; returns [B, N, 3].
    Centring takes the shift out again, up to rounding: it shows only with `normalize=False`, as in the recipes of the
    Point-MAE family.
    """
    low, high = scale
    factors = low + (high - low) * random.uniform(scale_keys, 1, 3)  # [B, 1, 3]
    offsets = shift * (2 * random.uniform(shift_keys, 1, 3) - 1)  # [B, 1, 3]
    augmented = points * factors + offsets  # [B, N, 3]
    return normalize_unit_sphere(augmented) if normalize else augmented
