"""N-way K-shot draws from a labelled set (docs/deviations.md C). S clouds of a set."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from jointmae import random
from jointmae.data import PointClouds
from jointmae.data.splits import Names
from jointmae.downstream.splits import Splits
from jointmae.errors import UsageError
from jointmae.random import Purpose


def draw_episode(splits: Splits, ways: int, shots: int, queries: int, seed: int) -> Splits:
    """`ways` random classes with `shots` random clouds of each to train on, and `queries` of each to test on.

    Shots come of the train split, queries of the test split. Raises UsageError where too few classes are large enough.
    """
    train, test = splits.train, splits.test
    candidates = torch.nonzero((_sizes(train) >= shots) & (_sizes(test) >= queries)).flatten()
    if len(candidates) < ways:
        raise UsageError(
            f"--ways {ways} --shots {shots} --queries {queries}: only {len(candidates)} of {len(train.classes)} "
            f"classes of {train.title} have {shots} train and {queries} test clouds; lower one of them"
        )
    classes = candidates[_order(seed, 0, len(candidates))[:ways]].sort().values
    return Splits(_drawn(train, classes, shots, seed, 1), None, _drawn(test, classes, queries, seed, 2))


def _sizes(clouds: PointClouds) -> Tensor:
    """Clouds of each class."""
    return torch.bincount(clouds.labels[clouds.labels >= 0].cpu(), minlength=len(clouds.classes))


def _drawn(clouds: PointClouds, classes: Tensor, count: int, seed: int, half: int) -> PointClouds:
    """`count` random clouds of each of `classes`, which become 0, 1, ..."""
    order = _order(seed, half, len(clouds))
    labels = clouds.labels.cpu()[order]
    chosen = torch.cat([order[labels == label][:count] for label in classes])
    here = torch.arange(len(classes)).repeat_interleave(count)
    names: Names = tuple(clouds.classes[i] for i in classes.tolist())
    return replace(clouds.select(chosen), labels=here.to(clouds.device), classes=names)


def _order(seed: int, purpose: int, count: int) -> Tensor:
    """A random order of `count` things."""
    key = random.keys(seed, purpose, torch.zeros(1, dtype=torch.int64), Purpose.EPISODE)
    return random.permutation(key, count)[0]
