"""Point clouds as tensors on one device, and the batches drawn from them.

S clouds, N points each; B clouds of a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jointmae import random
from jointmae.text import counted

Names = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class PointClouds:
    """A data set on one device. Clouds as `load` and `concat` give them are centred and scaled into the unit sphere."""

    title: str  # "furniture", or the file's name
    layout: str  # what `jointmae.data.layouts` took it for
    points: Tensor  # [S, N, 3] float32
    labels: Tensor  # [S] int64, -1 = none
    names: Names  # S of them
    up: Tensor  # [S, 3] float32, the unit vector that points up
    classes: Names
    parts: Tensor | None  # [S, N] uint8
    part_names: Names
    source: str
    licence: str
    sha256: str  # of the file, or of the joined sets' sums
    bad_files: Names = ()  # files that were left out, each with what is wrong with it
    num_dropped: int = 0  # points that were left out since they are not finite

    def __len__(self) -> int:
        """The number of clouds, S."""
        return len(self.points)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.points.device

    def to(self, device: torch.device | str) -> PointClouds:
        """The same clouds on another device."""
        return replace(
            self,
            points=self.points.to(device),
            labels=self.labels.to(device),
            up=self.up.to(device),
            parts=None if self.parts is None else self.parts.to(device),
        )

    def select(self, ids: Tensor) -> PointClouds:
        """The clouds `ids` (int64 [K]), in that order."""
        ids = ids.to(self.device)
        return replace(
            self,
            points=self.points[ids],  # [K, N, 3]
            labels=self.labels[ids],
            names=tuple(self.names[i] for i in ids.tolist()),
            up=self.up[ids],
            parts=None if self.parts is None else self.parts[ids],
        )

    def labelled(self) -> PointClouds:
        """The clouds that have a label; possibly none."""
        return self.select(torch.nonzero(self.labels >= 0).flatten())

    def first(self, num_points: int) -> PointClouds:
        """The first `num_points` of each cloud, for evaluation; smaller clouds repeat cyclically.

        Rows keep their coordinates: a subset is not centred again. Raises ValueError unless num_points >= 1.
        """
        rows = _cyclic_rows(self.points.shape[1], num_points, self.device)  # [num_points]
        parts = None if self.parts is None else self.parts[:, rows]
        return replace(self, points=self.points[:, rows], parts=parts)  # [S, num_points, 3]

    def batch(self, ids: Tensor, num_points: int, seed: int, epoch: int | Tensor) -> Tensor:
        """Points of the clouds `ids` (int64 [B]) -> float32 [B, num_points, 3]; what a training step starts from.

        A cloud of more points gives a random subset, which depends on (seed, epoch, id) alone; a smaller one repeats
        cyclically. Rows keep their coordinates. `epoch` as in `random.keys`. Raises ValueError unless num_points >= 1.
        """
        return self.points[ids.unsqueeze(1), self._rows(ids, num_points, seed, epoch)]  # [B, num_points, 3]

    def batch_with_parts(self, ids: Tensor, num_points: int, seed: int, epoch: int | Tensor) -> tuple[Tensor, Tensor]:
        """What `batch` gives, and the parts of these points: int64 [B, num_points]."""
        assert self.parts is not None, "a set with parts"
        rows = self._rows(ids, num_points, seed, epoch)  # [num_points] or [B, num_points]
        return self.points[ids.unsqueeze(1), rows], self.parts[ids.unsqueeze(1), rows].long()

    def _rows(self, ids: Tensor, num_points: int, seed: int, epoch: int | Tensor) -> Tensor:
        """The rows of `batch`: [num_points], or [B, num_points] where they differ between clouds."""
        N = self.points.shape[1]
        rows = _cyclic_rows(N, num_points, self.device)  # [num_points]
        if N <= num_points:
            return rows
        return random.subset(random.keys(seed, epoch, ids, random.Purpose.SUBSET), N, num_points)

    def describe(self) -> str:
        """One line for people: clouds, points, classes, bad files."""
        num_labelled = int((self.labels >= 0).sum())
        classes = counted(len(self.classes), "class", "es")
        labelled = f"{classes}, {num_labelled:,} labelled" if num_labelled else "no labels"
        parts = "" if self.parts is None else f", {counted(len(self.part_names), 'part')}"
        size = f"{counted(len(self), 'cloud')} x {counted(self.points.shape[1], 'point')}"
        dropped = f", {counted(self.num_dropped, 'bad point')} dropped" if self.num_dropped else ""
        bad_files = counted(len(self.bad_files), "bad file")
        return f"{self.title} ({self.layout}): {size}, {labelled}{parts}, {bad_files}{dropped}"


def concat(sets: Sequence[PointClouds], num_points: int | None = None) -> PointClouds:
    """Join sets of different origin, on the device of the first; each cloud keeps its own up axis.

    Clouds get `num_points` points, by default those of the largest: larger clouds a fixed random subset, smaller ones
    cyclic repeats. Sets with equal `classes` share them; else classes are called `title/class`. `parts` survive where
    all sets have them with equal `part_names`. Raises ValueError for no sets or num_points < 1.
    """
    if not sets:
        raise ValueError("concat: wanted at least one set, got none")
    if any(clouds.classes != sets[0].classes for clouds in sets):
        sets = _with_own_classes(sets)
    return join([clouds.to(sets[0].device) for clouds in sets], num_points)


def join(sets: Sequence[PointClouds], num_points: int | None = None) -> PointClouds:
    """Sets on one device with one list of classes, end to end; `num_points` as in `concat`."""
    if num_points is None:
        num_points = max(clouds.points.shape[1] for clouds in sets)
    sets = [_resample(clouds, num_points) for clouds in sets]
    first = sets[0]
    if len(sets) == 1:  # as it is: a map of a file stays one
        return first
    parts = [clouds.parts for clouds in sets if clouds.parts is not None and clouds.part_names == first.part_names]
    has_parts = len(parts) == len(sets)
    return PointClouds(
        title="+".join(_unique(clouds.title for clouds in sets)),
        layout=" + ".join(_unique(clouds.layout for clouds in sets)),
        points=torch.cat([clouds.points for clouds in sets]),  # [S, N, 3]
        labels=torch.cat([clouds.labels for clouds in sets]),  # [S]
        names=tuple(name for clouds in sets for name in clouds.names),
        up=torch.cat([clouds.up for clouds in sets]),  # [S, 3]
        classes=first.classes,
        parts=torch.cat(parts) if has_parts else None,  # [S, N]
        part_names=first.part_names if has_parts else (),
        source="; ".join(_unique(clouds.source for clouds in sets)),
        licence="; ".join(_unique(clouds.licence for clouds in sets)),
        sha256=_joined_sha256([clouds.sha256 for clouds in sets]),
        bad_files=tuple(_unique(file for clouds in sets for file in clouds.bad_files)),
        num_dropped=sum(clouds.num_dropped for clouds in sets),
    )


def _resample(clouds: PointClouds, num_points: int) -> PointClouds:
    """Each cloud with exactly `num_points` points, the same ones on every call."""
    S, N, _ = clouds.points.shape
    if N <= num_points:
        return clouds if N == num_points else clouds.first(num_points)
    ids = torch.arange(S, device=clouds.device)
    rows = random.subset(random.keys(0, 0, ids, random.Purpose.SUBSET), N, num_points)  # [S, num_points]
    points = clouds.points[ids.unsqueeze(1), rows]  # [S, num_points, 3]
    return replace(clouds, points=points, parts=None if clouds.parts is None else clouds.parts.gather(1, rows))


def _cyclic_rows(N: int, num_points: int, device: torch.device) -> Tensor:
    """0..N-1 over and over: int64 [num_points]."""
    if num_points < 1:
        raise ValueError(f"num_points must be at least 1, got {num_points}")
    return torch.arange(num_points, device=device) % N


def _with_own_classes(sets: Sequence[PointClouds]) -> list[PointClouds]:
    """The same sets over one list of classes, where each set has its own under its title."""
    titles = [clouds.title for clouds in sets]
    titles = [title if titles.count(title) == 1 else f"{title}#{i}" for i, title in enumerate(titles)]
    classes = tuple(f"{title}/{name}" for title, clouds in zip(titles, sets, strict=True) for name in clouds.classes)
    renamed, offset = [], 0
    for clouds in sets:
        labels = torch.where(clouds.labels >= 0, clouds.labels + offset, clouds.labels)
        renamed.append(replace(clouds, labels=labels, classes=classes))
        offset += len(clouds.classes)
    return renamed


def _joined_sha256(sums: Sequence[str]) -> str:
    """One sum for several files, in their order; several splits of one file keep its sum."""
    distinct = _unique(sums)
    return distinct[0] if len(distinct) == 1 else hashlib.sha256("\n".join(distinct).encode()).hexdigest()


def _unique(values: Iterable[str]) -> list[str]:
    """Without repeats and empty strings, in order of first appearance."""
    return [value for value in dict.fromkeys(values) if value]
