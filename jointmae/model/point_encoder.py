"""The 3D branch of a `JointMAE`: all that downstream tasks keep (section 4.1).

B clouds, N points, G tokens, C channels.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn

from jointmae.config import ModelConfig
from jointmae.data import normalize_unit_sphere
from jointmae.model.embed import PointEmbed, sample_geometry
from jointmae.model.transformer import PointPosition, Transformer, init_transformer


class Features(NamedTuple):
    """What the encoder says of a cloud."""

    tokens: Tensor  # [B, G, C], after the final norm
    centers: Tensor  # [B, G, 3], where each token sits
    pooled: Tensor  # [B, 2 C], mean and maximum over the tokens


class PointEncoder(nn.Module):
    """Tokens of all groups of a cloud, nothing hidden, with plain attention; M_3D stays (D 28)."""

    def __init__(
        self,
        config: ModelConfig,
        point_embed: PointEmbed,
        point_position: PointPosition,
        modality_3d: nn.Parameter,
        encoder: Transformer,
    ) -> None:
        """Of the parts of a `JointMAE`, whose weights it shares: `JointMAE.point_encoder` calls this."""
        super().__init__()
        self.config = config
        self.point_embed, self.point_position = point_embed, point_position
        self.modality_3d, self.encoder = modality_3d, encoder

    @staticmethod
    def of(config: ModelConfig) -> PointEncoder:
        """With new weights, drawn from torch's generator."""
        C = config.embed_dim
        embed, position = PointEmbed(config), PointPosition(C)
        modality_3d = nn.Parameter(0.02 * torch.randn(1, 1, C))  # M_3D
        encoder = Transformer(
            C, config.num_layers, config.num_heads, config.mlp_ratio, config.drop_path, config.position_every_block
        )
        init_transformer(encoder)
        return PointEncoder(config, embed, position, modality_3d, encoder)

    def ready(self, points: Tensor, normalize: bool = True) -> Tensor:
        """Clouds [B, N, 3] as `forward` takes them, on the model's device; see `JointMAE.encode`."""
        if not isinstance(points, Tensor):
            raise TypeError(f"encode: points must be a tensor, got {type(points).__name__}; torch.from_numpy makes one")
        if points.dim() != 3 or points.shape[-1] != 3:
            raise ValueError(f"encode: points must have shape [B, N, 3], got {list(points.shape)}")
        N = points.shape[1]
        if N < 32:
            raise ValueError(f"encode: a cloud must have at least 32 points, got {N}")
        trained = self.config.num_points
        if not trained / 2 <= N <= 2 * trained:
            warnings.warn(f"encode: the model was trained on {trained} points a cloud, these have {N}", stacklevel=3)
        points = points.to(self.modality_3d.device, torch.float32)
        if normalize:
            points = normalize_unit_sphere(points)
        wanted = self.config.num_centers[0]
        if N < wanted:
            points = points[:, torch.arange(wanted, device=points.device) % N]
        return points

    def forward(self, points: Tensor, uniforms: Tensor | None = None) -> Features:
        """Unit-sphere points [B, N, 3], N at least the number of centres; `uniforms` [B, blocks, 2] drive drop path."""
        (tokens,), centers = self.taps(points, [self.config.num_layers - 1], uniforms)
        return Features(tokens, centers, pool(tokens))

    def taps(self, points: Tensor, blocks: list[int], uniforms: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Tokens [B, G, C] after each of `blocks` (0, 1, ...) and the final norm, and their centres [B, G, 3]."""
        geometry = sample_geometry(self.config, points)
        tokens = self.point_embed(points, geometry) + self.modality_3d  # [B, G, C]
        outputs = self.encoder.outputs(tokens, self.point_position(geometry.centers), None, uniforms)
        return [self.encoder.norm(outputs[i]) for i in blocks], geometry.centers


def pool(tokens: Tensor) -> Tensor:
    """Mean and maximum over tokens [B, G, C], joined: [B, 2 C] (D 27)."""
    return torch.cat([tokens.mean(1), tokens.amax(1)], dim=-1)
