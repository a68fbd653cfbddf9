"""Classification: the encoder, mean and maximum of its tokens, and the family's head.

B clouds, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jointmae import random
from jointmae.model.files import load_model
from jointmae.model.point_encoder import PointEncoder
from jointmae.random import Purpose

HEAD_WIDTH = 256


class ClassifierDraws(NamedTuple):
    """All random numbers of one forward pass of training, uniform in [0, 1)."""

    drop_path: Tensor  # [B, blocks, 2]
    dropout: Tensor  # [B, 2, HEAD_WIDTH]


def draw_classifier(num_layers: int, seed: int, epoch: int | Tensor, ids: Tensor) -> ClassifierDraws:
    """The random numbers of clouds `ids` [B] int64 in this epoch."""
    path_keys, head_keys = (random.keys(seed, epoch, ids, purpose) for purpose in (Purpose.DROP_PATH, Purpose.DROPOUT))
    return ClassifierDraws(random.uniform(path_keys, num_layers, 2), random.uniform(head_keys, 2, HEAD_WIDTH))


class Classifier(nn.Module):
    """Logits of K classes: 2 C -> 256 -> 256 -> K, with batch norm, ReLU and dropout between (docs/deviations.md C)."""

    def __init__(self, encoder: PointEncoder, classes: Sequence[str], dropout: float = 0.5, seed: int = 0) -> None:
        """The weights of the head are drawn with `seed`; `classes` are the names of the K classes."""
        super().__init__()
        self.encoder, self.classes, self.dropout = encoder, tuple(classes), dropout
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            widths = (2 * encoder.config.embed_dim, HEAD_WIDTH, HEAD_WIDTH)
            self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))
            self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in widths[1:])
            self.head = nn.Linear(HEAD_WIDTH, len(self.classes))

    def forward(self, points: Tensor, draws: ClassifierDraws | None = None) -> Tensor:
        """Unit-sphere points [B, N, 3] -> logits [B, K], float32 or float64; `draws` drive drop path and dropout."""
        x = self.encoder(points, None if draws is None else draws.drop_path).pooled  # [B, 2 C]
        for i, (linear, norm) in enumerate(zip(self.hidden, self.norms, strict=True)):
            x = F.relu(norm(linear(x)))
            if draws is not None:
                x = dropout(x, self.dropout, draws.dropout[:, i])
        logits: Tensor = self.head(x)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @torch.no_grad()
    def classify(self, points: Tensor) -> Tensor:
        """Probabilities [B, K] of `classes` for clouds [B, N, 3] of any position and scale; as after `eval()`.

        Raises what `PointEncoder.ready` does.
        """
        training = self.training
        try:
            logits: Tensor = self.eval()(self.encoder.ready(points))
            return logits.softmax(1)
        finally:
            self.train(training)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Classifier:
        """The model of one run of `python -m jointmae.finetune`, runs/NAME/seed-0, in evaluation mode.

        Raises CheckpointError if a file is missing, damaged or made for another model.
        """
        return load_model(path, lambda config, values: cls(PointEncoder.of(config), values["classes"]))


def dropout(x: Tensor, rate: float, uniforms: Tensor) -> Tensor:
    """Zeroes x where `uniforms`, of its shape, are < rate, and scales up what is left."""
    return x * ((uniforms >= rate).to(x.dtype) / (1 - rate))
