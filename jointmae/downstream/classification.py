"""Fine-tuning for classification. B clouds of a batch, S of a set, N points, K classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from sklearn.metrics import accuracy_score, recall_score
from torch import Tensor, nn

from jointmae import random
from jointmae.config import FinetuneConfig
from jointmae.data import PointClouds, normalize_unit_sphere
from jointmae.data.augment import augment
from jointmae.downstream.splits import Splits, farthest_first
from jointmae.downstream.supervised import Supervised, by_class, looked_at
from jointmae.downstream.task import DownstreamTask
from jointmae.errors import DataError
from jointmae.model import Classifier
from jointmae.model.classifier import draw_classifier
from jointmae.objective import Losses, Objective
from jointmae.random import Purpose

_CHUNK = 64  # clouds that are classified at once


class ClassificationTask(DownstreamTask):
    """Clouds to classes."""

    config: FinetuneConfig
    name = "classification"
    score_name = "accuracy"

    def __init__(self, config: FinetuneConfig, splits: Splits) -> None:
        """Unlabelled clouds are left out. Raises DataError where fewer than two classes are left to train on."""
        train, val, test = (clouds and clouds.labelled() for clouds in splits)
        assert train is not None and test is not None
        if len(train.labels.unique()) < 2 or len(test) == 0:
            what = f"got {len(train.labels.unique())} in train, and {len(test)} labelled test clouds"
            raise DataError(train.title, "labels", f"wanted at least two classes and a test cloud, {what}")
        super().__init__(config, Splits(train, val, test))
        if config.sampling == "fps":
            num_points = self.model_config.num_points
            self.clouds = farthest_first(train, num_points, spare=True)
            self.test = farthest_first(test, num_points, spare=config.votes > 0)
            self.val = val and farthest_first(val, num_points, spare=False)

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """The classes."""
        return {"classes": self.clouds.classes}

    @property
    def protocol(self) -> dict[str, Any]:
        """As in docs/deviations.md C."""
        return {
            "augmentation": self.config.augment,
            "pooling": "mean+max",
            "sampling": self.config.sampling,
            "num_points": self.model_config.num_points,
            "votes": self.config.votes,
        }

    def new_model(self) -> Classifier:
        """The encoder, and a head drawn with the seed."""
        return Classifier(self.encoder(), self.clouds.classes, self.config.dropout, self.config.seed)

    def objective(self, model: nn.Module) -> Objective:
        """Cross-entropy."""
        return Classification(model, self.config)

    def scores(self, model: nn.Module, clouds: PointClouds) -> dict[str, float]:
        """Accuracy over clouds, and its mean over the classes that occur."""
        return class_scores(clouds.labels, predict(cast(Classifier, model), clouds).argmax(1))

    def more_scores(self, model: nn.Module) -> dict[str, float]:
        """The same by votes."""
        if self.config.votes == 0:
            return {}
        found = class_scores(self.test.labels, self._votes(cast(Classifier, model)).argmax(1))
        return {f"voted_{name}": value for name, value in found.items()}

    def details(self, model: nn.Module) -> dict[str, Any]:
        """Of each class: its test clouds, and how many of them were recognised."""
        right = predict(cast(Classifier, model), self.test).argmax(1) == self.test.labels.cpu()
        return {"classes": by_class(self.test, "accuracy", right.double())}

    def _votes(self, model: Classifier) -> Tensor:
        """Mean probabilities [S, K] over augmented copies of the test clouds; one fixed set of copies."""
        config, total = self.config, torch.zeros(())
        seed = random.fold(config.seed, int(Purpose.VOTE))
        for vote in range(config.votes):

            def copies(ids: Tensor, vote: int = vote) -> Tensor:
                points = self.test.batch(ids, model.encoder.config.num_points, seed, vote)
                return augment(config.augment, points, self.test.up[ids], ids, vote, seed)

            total = total + _logits(model, copies, self.test).softmax(1) / config.votes
        return total


class Classification(Supervised):
    """Of a `Classifier`."""

    config: FinetuneConfig

    def batch(self, clouds: PointClouds, ids: Tensor, epoch: int) -> tuple[Tensor, ...]:
        """Filled on the device: to take a number there would be to wait for it."""
        points = clouds.batch(ids, self._model.encoder.config.num_points, self.config.seed, epoch)
        now = torch.full((), epoch, dtype=torch.int64, device=clouds.device)
        return points, clouds.up[ids], clouds.labels[ids], ids, now

    def forward(self, *batch: Tensor) -> Losses:
        """Points [B, N, 3], up axes [B, 3] and labels int64 [B] of clouds `ids` int64 [B], in an epoch, int64 []."""
        points, up, labels, ids, epoch = batch
        config = self.config
        points = augment(config.augment, points, up, ids, epoch, config.seed).to(self.dtype)
        draws = draw_classifier(self._model.encoder.config.num_layers, config.seed, epoch, ids)
        with self.autocast():
            logits = self.model(points, draws)  # [B, K]
        return self.losses(logits, labels, config.label_smoothing)

    @property
    def _model(self) -> Classifier:
        return cast(Classifier, self.model)


def predict(model: Classifier, clouds: PointClouds) -> Tensor:
    """Logits [S, K] of the first points of each cloud, in evaluation mode, on the CPU; the model is left as it was."""
    first = clouds.first(model.encoder.config.num_points).points
    return _logits(model, lambda ids: normalize_unit_sphere(first[ids]), clouds)


def _logits(model: Classifier, points_of: Callable[[Tensor], Tensor], clouds: PointClouds) -> Tensor:
    with looked_at(model) as dtype:
        chunks = torch.arange(len(clouds), device=clouds.device).split(_CHUNK)
        return torch.cat([model(points_of(ids).to(dtype)).float().cpu() for ids in chunks])


def class_scores(labels: Tensor, predicted: Tensor) -> dict[str, float]:
    """Accuracy, and its mean over the classes that occur in labels [S]; predicted [S]."""
    truth, found = labels.cpu().numpy(), predicted.cpu().numpy()
    recall = recall_score(truth, found, labels=np.unique(truth), average="macro")
    return {"accuracy": float(accuracy_score(truth, found)), "class_accuracy": float(recall)}
