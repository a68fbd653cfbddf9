"""From a layout's blocks to one array: bad points refused or dropped, every cloud normalised, all of one size.

S clouds, N points each; T points of clouds of unequal size, end to end.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from jointmae import random
from jointmae.data.layouts.layout import BadFile, Block, Layout, Names
from jointmae.data.normalize import normalize_unit_sphere
from jointmae.errors import DataError
from jointmae.text import counted

NUM_POINTS = 2048
"""What clouds of unequal size are resampled to, or the size of the largest where that is less."""

BadPoints = Literal["error", "drop"]


@dataclass(frozen=True, eq=False)
class SplitArrays:
    """One split, ready for use: each cloud is centred and scaled into the unit sphere."""

    points: NDArray[np.float32]  # [S, N, 3]
    labels: NDArray[np.int64]  # [S], -1 = none
    names: Names  # S of them
    parts: NDArray[np.uint8] | None  # [S, N]
    bad_files: Names = ()  # files that were left out, each with what is wrong with it
    num_dropped: int = 0  # points that were not finite


class _Points:
    """Points of blocks end to end: in memory, or in a nameless file of `folder` where they may not fit into it."""

    def __init__(self, folder: Path | None) -> None:
        self._file = None if folder is None else tempfile.TemporaryFile(dir=folder)
        self._blocks: list[NDArray[np.float32]] = []

    def add(self, points: NDArray[np.float32]) -> None:
        if self._file is None:
            self._blocks.append(points)
        else:
            self._file.write(points.data.cast("B"))

    def joined(self) -> NDArray[np.float32]:
        """All of them [T, 3]; of a file, a private map."""
        if self._file is None:
            return np.concatenate(self._blocks)
        with self._file:
            mapped: np.memmap[Any, np.dtype[np.float32]] = np.memmap(self._file, dtype=np.float32, mode="c")
        return mapped.reshape(-1, 3)


@dataclass(eq=False)
class _Clouds:
    """What has been read so far."""

    points: _Points
    sizes: list[NDArray[np.int64]] = field(default_factory=list)
    labels: list[NDArray[np.int64]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    parts: list[NDArray[np.uint8]] = field(default_factory=list)
    bad_files: list[str] = field(default_factory=list)
    num_dropped: int = 0

    def add(self, block: Block, num_dropped: int) -> None:
        self.points.add(_normalised(block.points, block.sizes))
        self.sizes.append(block.sizes)
        self.labels.append(block.labels)
        self.names.extend(block.names)
        self.parts += [] if block.parts is None else [block.parts]
        self.num_dropped += num_dropped


def gather(
    layout: Layout, split: str, bad_points: BadPoints = "error", skip_bad: bool = False, folder: Path | None = None
) -> SplitArrays:
    """All clouds of a split; with a `folder`, by way of a nameless file there, for sets larger than memory.

    Clouds of unequal size, and those whose rows are in no random order, are resampled to one size: a larger cloud
    gives a random subset, which depends on the cloud's number alone, a smaller one repeats cyclically.

    Raises DataError naming cloud and row for a coordinate that is not finite, unless `bad_points` is "drop": then the
    row is left out, and a cloud with no other is an error. `skip_bad` leaves out files that cannot be read.
    """
    clouds = _Clouds(_Points(folder))
    for block in layout.blocks(split, skip_bad):
        if isinstance(block, BadFile):
            clouds.bad_files.append(f"{block.name}: {block.what}")
        else:
            clouds.add(*_finite(block, bad_points, len(clouds.names)))
    if not clouds.names:
        first = f", the first {clouds.bad_files[0]}" if clouds.bad_files else ""
        bad_files = counted(len(clouds.bad_files), "bad file")
        raise DataError(layout.path, split, f"not one cloud can be read: {bad_files}{first}")
    return _of_one_size(clouds, layout.rows_are_random)


def content_sha256(arrays: SplitArrays, names: Sequence[Names]) -> str:
    """A sum over everything that training can see: clouds, labels, parts, and the lists of `names` (classes, ...)."""
    digest = hashlib.sha256(repr((arrays.points.shape, arrays.names, *names)).encode())
    for values in (arrays.points, arrays.labels, arrays.parts):
        if values is not None:
            digest.update(np.ascontiguousarray(values).data.cast("B"))
    return digest.hexdigest()


def _finite(block: Block, bad_points: BadPoints, num_before: int) -> tuple[Block, int]:
    """The block without rows that are not finite, and their number. Raises DataError as `gather` does."""
    if np.isfinite(block.points).all():
        return block, 0
    finite = np.isfinite(block.points).all(axis=1)  # [T]
    ends = np.cumsum(block.sizes)  # [b]
    row = int(np.argmin(finite))
    cloud = int(np.searchsorted(ends, row, side="right"))
    if bad_points == "error":
        in_cloud = row - int(ends[cloud] - block.sizes[cloud])
        got = f"row {in_cloud} is {block.points[row].tolist()}, wanted finite float32"
        raise _error(block, cloud, num_before, f"{got}: repair it, or leave such rows out by --bad-points drop")
    kept = np.add.reduceat(finite, ends - block.sizes, dtype=np.int64)  # [b]
    if not kept.all():
        raise _error(block, int(np.argmin(kept)), num_before, "has no finite point: remove the cloud")
    parts = None if block.parts is None else block.parts[finite]
    fine = Block(block.points[finite], kept, block.labels, block.names, parts, block.file, block.item)
    return fine, int((~finite).sum())


def _error(block: Block, cloud: int, num_before: int, what: str) -> DataError:
    name = block.names[cloud]
    if not block.item:  # the cloud is a file
        return DataError(block.file / name, "", what)
    return DataError(block.file, block.item, f"cloud {num_before + cloud} ({name!r}), {what}")


def _normalised(points: NDArray[np.float32], sizes: NDArray[np.int64]) -> NDArray[np.float32]:
    """Every cloud of points [T, 3] in the unit sphere."""
    if len(np.unique(sizes)) == 1:
        dense = torch.from_numpy(points).view(len(sizes), -1, 3)
        return torch.cat([normalize_unit_sphere(some) for some in dense.split(1024)]).view(-1, 3).numpy()
    clouds = torch.from_numpy(points).split(sizes.tolist())
    return torch.cat([normalize_unit_sphere(cloud) for cloud in clouds]).numpy()


def _of_one_size(clouds: _Clouds, rows_are_random: bool) -> SplitArrays:
    sizes = np.concatenate(clouds.sizes)  # [S]
    points = clouds.points.joined()  # [T, 3]
    parts = np.concatenate(clouds.parts) if clouds.parts else None  # [T]
    N, equal = int(sizes.max()), bool((sizes == sizes[0]).all())
    if not (equal and rows_are_random):
        N = N if equal else min(N, NUM_POINTS)
        points, parts = _resampled(points, parts, sizes, N)
    return SplitArrays(
        points=points.reshape(-1, N, 3),
        labels=np.concatenate(clouds.labels),
        names=tuple(clouds.names),
        parts=None if parts is None else parts.reshape(-1, N),
        bad_files=tuple(clouds.bad_files),
        num_dropped=clouds.num_dropped,
    )


def _resampled(
    points: NDArray[np.float32], parts: NDArray[np.uint8] | None, sizes: NDArray[np.int64], N: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None]:
    """N rows of every cloud: points [T, 3] -> [S, N, 3], parts [T] -> [S, N]."""
    chosen = np.empty((len(sizes), N, 3), dtype=np.float32)
    chosen_parts = None if parts is None else np.empty((len(sizes), N), dtype=np.uint8)
    for i, rows in enumerate(_rows(sizes, N)):
        chosen[i] = points[rows]
        if parts is not None and chosen_parts is not None:
            chosen_parts[i] = parts[rows]
    return chosen, chosen_parts


def _rows(sizes: NDArray[np.int64], N: int) -> Iterator[NDArray[np.int64]]:
    """For each cloud the N rows of all points [T, 3] that it keeps."""
    cloud_keys = random.keys(0, 0, torch.arange(len(sizes)), random.Purpose.SUBSET)  # [S]
    start = 0
    for key, size in zip(cloud_keys, sizes.tolist(), strict=True):
        order = random.subset(key[None], size, min(N, size))[0].numpy()  # [min(N, size)]
        yield start + order[np.arange(N) % len(order)]
        start += size
