"""Linear reconstruction heads (equation 5). B clouds, M hidden tokens, C channels, k points of a group."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jointmae.config import PATCH_SIZE, ModelConfig


class PointHead(nn.Linear):
    """A decoded 3D token to the coordinates of its group, relative to the centre."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.embed_dim, 3 * config.num_target_neighbors)

    def forward(self, x: Tensor) -> Tensor:
        """[B, M, C] -> [B, M, k, 3], float32 or float64, in units of 1 / group_scale."""
        coordinates: Tensor = _at_least_float32(super().forward(x)).unflatten(-1, (-1, 3))
        return coordinates


class PixelHead(nn.Linear):
    """A decoded 2D token to the pixels behind it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.embed_dim, config.image_channels * PATCH_SIZE**2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, M, C] -> [B, M, channels x 256], float32 or float64."""
        return _at_least_float32(super().forward(x))


def _at_least_float32(x: Tensor) -> Tensor:
    """Losses are computed in no less, whatever the matrix work is in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
