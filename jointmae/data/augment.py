"""Augmentation on the device, a batch at a time, from counter-based keys.

B clouds, N points each.
"""

from __future__ import annotations

from torch import Tensor

from jointmae import random
from jointmae.data.normalize import normalize_unit_sphere


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
