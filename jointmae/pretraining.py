"""Pre-training as an objective: augmentation, projection, masked reconstruction. B clouds of a batch, N points."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jointmae.config import TrainConfig
from jointmae.data import PointClouds, normalize_unit_sphere, scale_and_shift
from jointmae.distributed import World
from jointmae.model.masking import draw
from jointmae.objective import Losses, Objective, spread_of
from jointmae.random import Purpose, keys


class Pretraining(Objective):
    """The three losses of a `JointMAE`."""

    names = ("loss", "loss_3d", "loss_2d", "loss_cross")

    @property
    def weights(self) -> dict[str, float]:
        """Those of equation 7."""
        return {name: getattr(self.config.model, name.replace("loss_", "loss_weight_")) for name in self.names[1:]}

    def batch(self, clouds: PointClouds, ids: Tensor, epoch: int) -> tuple[Tensor, ...]:
        """Filled on the device: to take a number there would be to wait for it."""
        points = clouds.batch(ids, self.config.model.num_points, self.config.seed, epoch)
        return points, clouds.up[ids], ids, torch.full((), epoch, dtype=torch.int64, device=clouds.device)

    def forward(self, *batch: Tensor) -> Losses:
        """Points [B, N, 3] and up axes [B, 3] of clouds `ids` int64 [B], in an epoch, int64 []."""
        points, up, ids, epoch = batch
        points = augment(self.config, points, ids, epoch).to(self.dtype)
        draws = draw(self.config.model, self.config.seed, epoch, ids)
        model: Any = self.model
        with self.autocast():
            output = model(points, up.to(self.dtype), draws)
        features = output.latent.tokens_3d.detach().double().mean(1)  # [B, C] of visible tokens
        details = {"features": features, "pairs": model.valid_pairs(output.inputs)}
        return Losses((output.loss, output.loss_3d, output.loss_2d, output.loss_cross), details)

    def diagnostics(self, details: dict[str, Tensor], world: World) -> dict[str, float]:
        """How much features differ between clouds, and how many 2D-3D pairs a cloud has (D 12)."""
        found = {"feature_std": spread_of(details["features"], world)}
        if self.config.model.modality == "joint":
            pairs = details["pairs"].double()
            sums = torch.stack([torch.ones_like(pairs), pairs, (pairs == 0).double()]).sum(1)
            count, total, without = world.sum(sums).tolist()
            found |= {"valid_pairs": total / count, "without_pair": without / count}
        return found


def augment(config: TrainConfig, points: Tensor, ids: Tensor, epoch: int | Tensor) -> Tensor:
    """Points [B, N, 3] of clouds `ids` [B] as the model gets them: augmented, and in the unit sphere."""
    if config.augment == "scale+shift":
        scale_keys, shift_keys = (keys(config.seed, epoch, ids, purpose) for purpose in (Purpose.SCALE, Purpose.SHIFT))
        return scale_and_shift(points, scale_keys, shift_keys, normalize=config.model.normalize_input)
    return normalize_unit_sphere(points) if config.model.normalize_input else points
