"""What classification and part segmentation share: cross-entropy as an objective, and a model that is looked at."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jointmae.data import PointClouds
from jointmae.distributed import World
from jointmae.objective import Losses, Objective


class Supervised(Objective):
    """Cross-entropy of logits, and how many of them are right."""

    names = ("loss", "accuracy")
    shown = {"loss": "loss", "accuracy": "accuracy"}
    has_diagnostics = False

    @property
    def weights(self) -> dict[str, float]:
        """None: there is one loss."""
        return {}

    def losses(self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Losses:
        """Of logits [n, K] and targets int64 [n]."""
        loss = F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
        accuracy = (logits.detach().argmax(1) == targets).to(loss.dtype).mean()
        return Losses((loss, accuracy), {})

    def diagnostics(self, details: dict[str, Tensor], world: World) -> dict[str, float]:
        """None."""
        return {}


@contextlib.contextmanager
def looked_at(model: nn.Module) -> Iterator[torch.dtype]:
    """The model in evaluation mode and without gradients within, and as it was afterwards; gives its dtype."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).dtype
    finally:
        model.train(training)


def by_class(clouds: PointClouds, name: str, values: Tensor) -> dict[str, Any]:
    """Of each class that occurs: its number of clouds, and under `name` the mean of their values [S]."""
    labels = clouds.labels.cpu()
    return {
        title: {"num_test": int((labels == i).sum()), name: float(values[labels == i].mean())}
        for i, title in enumerate(clouds.classes)
        if bool((labels == i).any())
    }
