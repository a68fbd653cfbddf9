"""Which clouds train, choose the epoch and test. S clouds, N points of each."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from jointmae import data, ops, random
from jointmae.config import DownstreamConfig
from jointmae.data import PointClouds
from jointmae.errors import DataError, UsageError
from jointmae.random import Purpose

_OVERSAMPLING = 1200 / 1024  # farthest points of which a training step takes random ones (docs/deviations.md C)
_CHUNK = 256  # clouds that are sampled at once


class Splits(NamedTuple):
    """The three parts of a labelled set, on one device."""

    train: PointClouds
    val: PointClouds | None  # None where no epoch is to be chosen
    test: PointClouds


def load_splits(config: DownstreamConfig, device: torch.device) -> Splits:
    """Those of all --data, joined. Raises DataError for a set without train or test split."""
    for name in config.data:
        if not {"train", "test"} <= set(data.splits_of(name)):
            there = ", ".join(data.splits_of(name))
            raise DataError(name, "", f"wanted a train and a test split, got {there}: `data convert` can make them")
    has_val = all("val" in data.splits_of(name) for name in config.data)
    train, test = (_load(config, (split,), device) for split in ("train", "test"))
    if config.paper_selection:
        return Splits(_load(config, ("train", "val"), device) if has_val else train, None, test)
    if has_val:
        return Splits(train, _load(config, ("val",), device), test)
    if config.val_fraction == 0:
        return Splits(train, None, test)
    held_out = hold_out(train.labels, config.val_fraction, config.seed)  # [S] bool
    if not held_out.any():
        raise UsageError(
            f"--val-fraction {config.val_fraction:g} of {len(train)} clouds in {len(train.classes)} classes is none: "
            "give a larger one, or 0 to take the last epoch"
        )
    chosen, rest = (torch.nonzero(flags).flatten() for flags in (held_out, ~held_out))
    return Splits(train.select(rest), train.select(chosen), test)


def _load(config: DownstreamConfig, splits: tuple[str, ...], device: torch.device) -> PointClouds:
    sets = [data.load(name, splits, bad_points=config.bad_points, skip_bad=config.skip_bad) for name in config.data]
    return (sets[0] if len(sets) == 1 else data.concat(sets)).to(device)


def hold_out(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """True [S] for the given fraction of each class of labels [S], rounded, random by seed; one of each class stays."""
    ranks = random.hashes(random.keys(seed, 0, torch.zeros(1, dtype=torch.int64), Purpose.VALIDATION), len(labels))[0]
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = torch.nonzero(labels.cpu() == label).flatten()
        count = min(math.floor(fraction * len(members) + 0.5), len(members) - 1)
        held_out[members[ranks[members].argsort()[:count]]] = True
    return held_out.to(labels.device)


def farthest_first(clouds: PointClouds, num_points: int, spare: bool) -> PointClouds:
    """Each cloud as its farthest point samples, in their order: so many, or with `spare` 1.17 times as many.

    A training step then takes random ones of them (`PointClouds.batch`), a test the first (`PointClouds.first`). Clouds
    that have no more points than that stay as they are.
    """
    wanted = math.ceil(num_points * _OVERSAMPLING) if spare else num_points
    if wanted >= clouds.points.shape[1]:
        return clouds
    sampled, parts = [], []
    for ids in torch.arange(len(clouds), device=clouds.device).split(_CHUNK):
        points = clouds.points[ids]  # [B, N, 3]
        rows = ops.farthest_point_sample(points, wanted)  # [B, wanted]
        sampled.append(points.gather(1, rows[..., None].expand(-1, -1, 3)))
        if clouds.parts is not None:
            parts.append(clouds.parts[ids].gather(1, rows))
    return replace(clouds, points=torch.cat(sampled), parts=torch.cat(parts) if parts else None)
