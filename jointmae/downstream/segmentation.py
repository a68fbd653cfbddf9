"""Fine-tuning for part segmentation. B clouds of a batch, S of a set, N points, K classes, P parts."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from jointmae.config import PartSegConfig
from jointmae.data import PointClouds, normalize_unit_sphere
from jointmae.data.augment import augment
from jointmae.downstream.splits import Splits
from jointmae.downstream.supervised import Supervised, by_class, looked_at
from jointmae.downstream.task import DownstreamTask
from jointmae.errors import DataError
from jointmae.model import Segmenter
from jointmae.model.segmenter import draw_segmenter
from jointmae.objective import Losses, Objective

_CHUNK = 32  # clouds that are segmented at once


class SegmentationTask(DownstreamTask):
    """Points to parts, the class of the object being known, as in the family."""

    config: PartSegConfig
    name = "part segmentation"
    score_name = "instance_miou"

    def __init__(self, config: PartSegConfig, splits: Splits) -> None:
        """Raises DataError for a set without part labels."""
        super().__init__(config, splits)
        if any(clouds is not None and clouds.parts is None for clouds in splits) or len(splits.train.part_names) < 2:
            found = len(splits.train.part_names)
            what = f"wanted a label of one of at least two parts for each point, got {found} parts"
            raise DataError(splits.train.title, "part", what)
        self.parts_of = parts_of_classes(splits.train)

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """Classes and parts."""
        return {"classes": self.clouds.classes, "part_names": self.clouds.part_names}

    @property
    def protocol(self) -> dict[str, Any]:
        """As in docs/deviations.md C."""
        return {"augmentation": self.config.augment, "num_points": self.model_config.num_points}

    def new_model(self) -> Segmenter:
        """The encoder, and a head drawn with the seed."""
        classes, part_names = self.clouds.classes, self.clouds.part_names
        return Segmenter(self.encoder(), classes, part_names, self.config.dropout, self.config.seed)

    def objective(self, model: nn.Module) -> Objective:
        """Cross-entropy over points."""
        return Segmentation(model, self.config)

    def scores(self, model: nn.Module, clouds: PointClouds) -> dict[str, float]:
        """Mean IoU over clouds and over classes, and accuracy over points."""
        ious, right = self._ious(cast(Segmenter, model), clouds)
        labels = clouds.labels.cpu()
        means = [ious[labels == label].mean() for label in labels.unique()]
        return {
            "instance_miou": float(ious.mean()),
            "class_miou": float(torch.stack(means).mean()),
            "point_accuracy": right,
        }

    def more_scores(self, model: nn.Module) -> dict[str, float]:
        """What the commonest part of each class alone would reach: a floor, as most points may be of one part."""
        parts = self.test.first(self.model_config.num_points).parts
        assert parts is not None
        labels = self.test.labels.cpu()
        predicted = commonest_parts(self.clouds)[labels][:, None].expand(parts.shape)  # [S, N]
        return {"trivial_instance_miou": float(shape_ious(parts.long().cpu(), predicted, self.parts_of[labels]).mean())}

    def details(self, model: nn.Module) -> dict[str, Any]:
        """Mean IoU of each class."""
        ious, _ = self._ious(cast(Segmenter, model), self.test)
        return {"classes": by_class(self.test, "miou", ious)}

    def _ious(self, model: Segmenter, clouds: PointClouds) -> tuple[Tensor, float]:
        """The mean IoU of each cloud, float64 [S], and the share of points with the right part."""
        first = clouds.first(model.encoder.config.num_points)
        assert first.parts is not None
        parts = first.parts.long().cpu()  # [S, N]
        predicted = predict_parts(model, first, self.parts_of)  # [S, N]
        allowed = self.parts_of[clouds.labels.cpu()]  # [S, P]
        return shape_ious(parts, predicted, allowed), float((parts == predicted).double().mean())


class Segmentation(Supervised):
    """Of a `Segmenter`, over all points of a batch."""

    config: PartSegConfig

    def batch(self, clouds: PointClouds, ids: Tensor, epoch: int) -> tuple[Tensor, ...]:
        """Filled on the device: to take a number there would be to wait for it."""
        num_points = self._model.encoder.config.num_points
        points, parts = clouds.batch_with_parts(ids, num_points, self.config.seed, epoch)
        now = torch.full((), epoch, dtype=torch.int64, device=clouds.device)
        return points, clouds.up[ids], clouds.labels[ids], parts, ids, now

    def forward(self, *batch: Tensor) -> Losses:
        """Points [B, N, 3], up axes [B, 3], classes int64 [B] and parts int64 [B, N] of clouds `ids`, in an epoch."""
        points, up, classes, parts, ids, epoch = batch
        config = self.config
        points = augment(config.augment, points, up, ids, epoch, config.seed).to(self.dtype)
        draws = draw_segmenter(self._model, config.seed, epoch, ids)
        with self.autocast():
            logits = self.model(points, classes, draws).flatten(0, 1)  # [B N, P]
        return self.losses(logits, parts.flatten())

    @property
    def _model(self) -> Segmenter:
        return cast(Segmenter, self.model)


def parts_of_classes(clouds: PointClouds) -> Tensor:
    """Which parts a class has, bool [K + 1, P]: those of its clouds; all for one without clouds, and for none (-1)."""
    assert clouds.parts is not None
    found = torch.zeros(max(len(clouds.classes), 1) + 1, len(clouds.part_names), dtype=torch.bool)
    for label in clouds.labels.cpu().unique().tolist():
        found[label, clouds.parts[clouds.labels == label].unique().long().cpu()] = True
    found[~found.any(1)] = True
    return found


def commonest_parts(clouds: PointClouds) -> Tensor:
    """The part that most points of each class have, int64 [K + 1]; for classes without clouds and for -1, of all."""
    assert clouds.parts is not None
    labels = clouds.labels.cpu()
    counts = torch.zeros(max(len(clouds.classes), 1) + 1, len(clouds.part_names), dtype=torch.int64)
    for label in labels.unique().tolist():
        counts[label] = torch.bincount(clouds.parts[labels == label].flatten().cpu(), minlength=counts.shape[1])
    return torch.where(counts.any(1), counts.argmax(1), counts.sum(0).argmax())


def predict_parts(model: Segmenter, clouds: PointClouds, parts_of: Tensor) -> Tensor:
    """The parts int64 [S, N] of all points of clouds, only such as their class has, in evaluation mode, on the CPU.

    `parts_of` bool [K + 1, P] as `parts_of_classes` gives it. The model is left as it was.
    """
    found = []
    with looked_at(model) as dtype:
        for ids in torch.arange(len(clouds), device=clouds.device).split(_CHUNK):
            classes = clouds.labels[ids]
            logits = model(normalize_unit_sphere(clouds.points[ids]).to(dtype), classes).float().cpu()
            impossible = ~parts_of[classes.cpu()][:, None]  # [B, 1, P]
            found.append(logits.masked_fill(impossible, -torch.inf).argmax(-1))
    return torch.cat(found)


def shape_ious(parts: Tensor, predicted: Tensor, allowed: Tensor) -> Tensor:
    """The mean IoU of each cloud over the parts that its class has: parts and predicted int64 [S, N] -> float64 [S].

    A part that neither the cloud nor the prediction has counts 1, as in Yi et al., A Scalable Active Framework for
    Region Annotation, 2016. `allowed` is bool [S, P].
    """
    ious = []
    for part in range(allowed.shape[1]):
        truth, found = parts == part, predicted == part
        union = (truth | found).sum(1).double()
        ious.append(torch.where(union > 0, (truth & found).sum(1) / union.clamp(min=1), 1.0))
    return (torch.stack(ious, 1) * allowed).sum(1) / allowed.sum(1)
