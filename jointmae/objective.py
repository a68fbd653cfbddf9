"""What a run minimises: a model, its losses, and how clouds become their input. B clouds of a batch."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jointmae.config import RunConfig
from jointmae.data import PointClouds
from jointmae.distributed import World


class Losses(NamedTuple):
    """What an objective gives for B clouds."""

    values: tuple[Tensor, ...]  # [] each, means over the clouds; the first is minimised. Left out: 0, without gradient
    details: dict[str, Tensor]  # [B, ...] each, without gradient: what `Objective.diagnostics` is made of


class Objective(nn.Module):
    """A model and what it is trained for, from augmentation to losses: one graph when compiled."""

    names: tuple[str, ...]
    """Of the values of `Losses`, as in metrics.jsonl."""
    has_diagnostics = True
    """Whether there is anything that `diagnostics` finds, or several losses to compare."""
    shown: dict[str, str]
    """Those that are worth a word on the terminal, and the word."""

    def __init__(self, model: nn.Module, config: RunConfig) -> None:
        """`model` is trained in place, where it is."""
        super().__init__()
        self.model, self.config = model, config
        self.dtype = torch.float64 if config.precision == "fp64" else torch.float32
        self.device_type = next(model.parameters()).device.type
        self.bf16 = config.precision == "bf16" or (config.precision == "auto" and self.device_type == "cuda")

    @property
    @abstractmethod
    def weights(self) -> dict[str, float]:
        """The losses that the first one is the weighted sum of; none where it is the only one."""

    @abstractmethod
    def batch(self, clouds: PointClouds, ids: Tensor, epoch: int) -> tuple[Tensor, ...]:
        """What `forward` takes for clouds `ids` int64 [B], on their device, without waiting for it."""

    @abstractmethod
    def forward(self, *batch: Tensor) -> Losses:
        """The losses of a batch."""

    @abstractmethod
    def diagnostics(self, details: dict[str, Tensor], world: World) -> dict[str, float]:
        """Numbers for metrics.jsonl from the details of this process's clouds; all processes call it together."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Around the model's forward pass: matrix work in bfloat16 where that is wanted."""
        return torch.autocast(self.device_type, torch.bfloat16, enabled=self.bf16)


def spread_of(features: Tensor, world: World) -> float:
    """The standard deviation over the clouds of all processes of features [B, C], mean over C; 0 for one cloud."""
    count = torch.full_like(features[0], len(features))
    count, total, squares = world.sum(torch.stack([count, features.sum(0), features.square().sum(0)]))
    variance = (squares / count - (total / count).square()).clamp(min=0)
    return float(variance.sqrt().mean())
