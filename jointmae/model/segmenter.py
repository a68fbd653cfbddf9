"""Part segmentation: the encoder's tokens carried back to the points (docs/deviations.md C, D 29).

B clouds, N points, G tokens, C channels, K parts, T = 3 C channels of the tapped blocks joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jointmae import ops, random
from jointmae.model.classifier import dropout
from jointmae.model.files import load_model
from jointmae.model.point_encoder import PointEncoder
from jointmae.random import Purpose

LABEL_WIDTH = 64


class SegmenterDraws(NamedTuple):
    """All random numbers of one forward pass of training, uniform in [0, 1)."""

    drop_path: Tensor  # [B, blocks, 2]
    dropout: Tensor  # [B, width of the last hidden layer but one]: a channel is left out in a whole cloud


def tapped_blocks(num_layers: int) -> list[int]:
    """The ends of the thirds of the encoder: blocks 3, 7, 11 of 12."""
    return [max((i + 1) * num_layers // 3 - 1, 0) for i in range(3)]


class Segmenter(nn.Module):
    """Logits of K parts for each point.

    Tokens after three blocks, joined, are interpolated from the 3 nearest centres to each point and joined with its
    coordinates (4 C, then 8/3 C wide: 1,536 and 1,024 in the paper's size); beside them stand the maximum and the mean
    of all tokens and a vector for the class of the object. Then 4/3 C, dropout, 2/3 C, K.
    """

    def __init__(
        self, encoder: PointEncoder, classes: Sequence[str], part_names: Sequence[str], rate: float = 0.5, seed: int = 0
    ) -> None:
        """The weights of the head are drawn with `seed`; `rate` is that of dropout. Classes may be none."""
        super().__init__()
        self.encoder, self.classes, self.part_names = encoder, tuple(classes), tuple(part_names)
        self.num_classes, self.rate = max(len(self.classes), 1), rate
        C = encoder.config.embed_dim
        T = 3 * C
        self.blocks = tapped_blocks(encoder.config.num_layers)
        self.widths = (4 * C, 8 * C // 3, 4 * C // 3, 2 * C // 3)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.label = nn.Sequential(nn.Linear(self.num_classes, LABEL_WIDTH), nn.LeakyReLU(0.2))
            first, second, third, fourth = self.widths
            # a linear layer commutes with interpolation, so its tokens' half runs once a token, not once a point
            self.lift_tokens, self.lift_points = nn.Linear(T, first, bias=False), nn.Linear(3, first)
            self.spread = nn.Linear(first, second)
            self.local = nn.Linear(second, third, bias=False)
            self.overall = nn.Linear(2 * T + LABEL_WIDTH, third)
            self.last = nn.Linear(third, fourth)
            self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in self.widths)
            self.head = nn.Linear(fourth, len(self.part_names))

    def forward(self, points: Tensor, classes: Tensor, draws: SegmenterDraws | None = None) -> Tensor:
        """Unit-sphere points [B, N, 3] of objects of `classes` int64 [B] (-1: unknown) -> logits [B, N, K]."""
        taps, centers = self.encoder.taps(points, self.blocks, None if draws is None else draws.drop_path)
        tokens = torch.cat(taps, dim=-1)  # [B, G, T]
        x = ops.knn_interpolate(points, centers, self.lift_tokens(tokens)) + self.lift_points(points)  # [B, N, 4 C]
        x = self._norm_relu(1, self.spread(self._norm_relu(0, x)))  # [B, N, 8/3 C]
        known = classes[:, None] == torch.arange(self.num_classes, device=classes.device)  # [B, classes]
        overall = torch.cat([tokens.amax(1), tokens.mean(1), self.label(known.to(tokens.dtype))], dim=-1)
        x = self._norm_relu(2, self.local(x) + self.overall(overall)[:, None])  # [B, N, 4/3 C]
        if draws is not None:
            x = dropout(x, self.rate, draws.dropout[:, None])
        logits: Tensor = self.head(self._norm_relu(3, self.last(x)))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @torch.no_grad()
    def segment(self, points: Tensor, classes: Tensor | None = None) -> Tensor:
        """Probabilities [B, N, K] of `part_names` for each point of clouds [B, N, 3] of any position and scale.

        `classes` int64 [B] are the objects' own (-1 or None: unknown). As after `eval()`. Raises what
        `PointEncoder.ready` does.
        """
        training = self.training
        try:
            ready = self.encoder.ready(points)  # [B, at least N, 3]
            if classes is None:
                classes = torch.full((len(ready),), -1, device=ready.device)
            logits: Tensor = self.eval()(ready, classes.to(ready.device))
            return logits.softmax(-1)[:, : points.shape[1]]
        finally:
            self.train(training)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Segmenter:
        """The model of one run of `python -m jointmae.part_seg`, runs/NAME/seed-0, in evaluation mode.

        Raises CheckpointError if a file is missing, damaged or made for another model.
        """
        return load_model(
            path, lambda config, values: cls(PointEncoder.of(config), values["classes"], values["part_names"])
        )

    def _norm_relu(self, i: int, x: Tensor) -> Tensor:
        """Batch norm over all points of the batch: [B, N, width] -> [B, N, width]."""
        return F.relu(self.norms[i](x.flatten(0, 1))).view_as(x)


def draw_segmenter(model: Segmenter, seed: int, epoch: int | Tensor, ids: Tensor) -> SegmenterDraws:
    """The random numbers of clouds `ids` [B] int64 in this epoch."""
    path_keys, head_keys = (random.keys(seed, epoch, ids, purpose) for purpose in (Purpose.DROP_PATH, Purpose.DROPOUT))
    num_layers = model.encoder.config.num_layers
    return SegmenterDraws(random.uniform(path_keys, num_layers, 2), random.uniform(head_keys, model.widths[2]))
