"""What a batch says beyond its losses: how strongly each of them pulls, and whether features still differ."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jointmae.config import ModelConfig
from jointmae.distributed import World
from jointmae.model import Reconstruction

_LOSSES = ("loss_3d", "loss_2d", "loss_cross")


class Diagnosis:
    """Adds up over the parts of a batch, then over the processes."""

    def __init__(self, model: nn.Module, config: ModelConfig) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._weights = {name: getattr(config, name.replace("loss_", "loss_weight_")) for name in _LOSSES}
        self._gradients: dict[str, Tensor] = {}
        self._moments: Tensor | None = None  # [3, C]: weight, sum and squares of pooled features

    def add(self, output: Reconstruction, weight: float) -> None:
        """Takes in a part of the batch that makes up `weight` of it; its graph stays."""
        pooled = output.latent.tokens_3d.detach().double().mean(1)  # [B, C]
        count = torch.full_like(pooled[0], len(pooled))
        self._moments = _plus(self._moments, torch.stack([count, pooled.sum(0), pooled.square().sum(0)]))
        for name, factor in self._weights.items():
            loss = getattr(output, name) * (factor * weight)
            if loss.requires_grad:
                found = torch.autograd.grad(loss, self._parameters, retain_graph=True, allow_unused=True)
                pairs = zip(found, self._parameters, strict=True)
                gradient = torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in pairs])
                self._gradients[name] = _plus(self._gradients.get(name), gradient)

    def of(self, world: World) -> dict[str, float]:
        """The norm of each weighted loss's gradient, and the spread of pooled features: 0 for a batch of one."""
        assert self._moments is not None
        count, total, squares = world.sum(self._moments)
        variance = (squares / count - (total / count).square()).clamp(min=0)
        found = {"feature_std": float(variance.sqrt().mean())}
        for name, gradient in self._gradients.items():
            found[name.replace("loss", "grad_norm")] = float(world.sum(gradient).float().norm())
        return found


def _plus(before: Tensor | None, more: Tensor) -> Tensor:
    return more if before is None else before + more
