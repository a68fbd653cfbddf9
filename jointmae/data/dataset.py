"""Point clouds as tensors on one device, and the batches drawn from them.

S clouds, N points each; B clouds of a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from jointmae import random
from jointmae.data import furniture
from jointmae.data.formats import FileContents, read_h5, splits_of_h5
from jointmae.data.normalize import normalize_unit_sphere
from jointmae.errors import DataError

Names = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class PointClouds:
    """A data set on one device. Clouds as `load` and `concat` give them are centred and scaled into the unit sphere."""

    title: str  # "furniture", or the file's name
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
    bad_files: Names = ()  # files of a folder that were left out; a set read from one file has none

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
        N = self.points.shape[1]
        rows = _cyclic_rows(N, num_points, self.device)  # [num_points]
        if N > num_points:
            subset_keys = random.keys(seed, epoch, ids, random.Purpose.SUBSET)  # [B]
            rows = random.permutation(subset_keys, N)[:, :num_points]  # [B, num_points]
        return self.points[ids.unsqueeze(1), rows]  # [B, num_points, 3]

    def describe(self) -> str:
        """One line for people: clouds, points, classes, bad files."""
        num_labelled = int((self.labels >= 0).sum())
        labelled = f"{len(self.classes)} classes, {num_labelled:,} labelled" if num_labelled else "no labels"
        parts = "" if self.parts is None else f", {len(self.part_names)} parts"
        size = f"{len(self):,} clouds x {self.points.shape[1]:,} points"
        return f"{self.title}: {size}, {labelled}{parts}, {len(self.bad_files)} bad files"


def load(spec: str | Path, splits: Sequence[str] = ("train",), device: torch.device | str = "cpu") -> PointClouds:
    """Load the embedded set ("furniture") or an `.h5` file (`formats.read_h5`), the given splits one after the other.

    Clouds are centred and scaled into the unit sphere. Raises DataError naming the file, item and remedy, also for a
    path that does not exist; ValueError if `splits` is empty.
    """
    if not splits:
        raise ValueError("load: splits must name at least one split, got none")
    path = _file_of(spec)
    sha256 = _file_sha256(path)
    embedded = str(spec) == furniture.NAME
    if embedded and sha256 != furniture.SHA256:
        raise DataError(path, "", "the embedded data set is damaged: install jointmae again")
    title = furniture.NAME if embedded else path.stem
    contents = read_h5(path, tuple(splits))
    return _join([_from_split(contents, split, title, sha256) for split in splits]).to(device)


def splits_of(spec: str | Path) -> Names:
    """The names of the splits that `load` can give of `spec`. Raises DataError as it does."""
    return splits_of_h5(_file_of(spec))


def _file_of(spec: str | Path) -> Path:
    return furniture.path() if str(spec) == furniture.NAME else _existing_h5(Path(spec))


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
    return _join([clouds.to(sets[0].device) for clouds in sets], num_points)


def _join(sets: Sequence[PointClouds], num_points: int | None = None) -> PointClouds:
    """Sets on one device with one list of classes, end to end."""
    if num_points is None:
        num_points = max(clouds.points.shape[1] for clouds in sets)
    sets = [_resample(clouds, num_points) for clouds in sets]
    first = sets[0]
    parts = [clouds.parts for clouds in sets if clouds.parts is not None and clouds.part_names == first.part_names]
    has_parts = len(parts) == len(sets)
    return PointClouds(
        title="+".join(_unique(clouds.title for clouds in sets)),
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
    )


def _resample(clouds: PointClouds, num_points: int) -> PointClouds:
    """Each cloud with exactly `num_points` points, the same ones on every call."""
    S, N, _ = clouds.points.shape
    if N <= num_points:
        return clouds if N == num_points else clouds.first(num_points)
    ids = torch.arange(S, device=clouds.device)
    rows = random.permutation(random.keys(0, 0, ids, random.Purpose.SUBSET), N)[:, :num_points]  # [S, num_points]
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


def _from_split(contents: FileContents, split: str, title: str, sha256: str) -> PointClouds:
    """One split as tensors, normalised in place, a block at a time."""
    data = contents.splits[split]
    points = torch.from_numpy(data.points)  # [S, N, 3]
    for block in torch.split(points, 1024):
        block.copy_(normalize_unit_sphere(block))
    up = torch.tensor([_up_vector(contents.up_axis)]).expand(len(points), 3)  # [S, 3]
    return PointClouds(
        title=title,
        points=points,
        labels=torch.from_numpy(data.labels),
        names=data.names,
        up=up,
        classes=contents.classes,
        parts=None if data.parts is None else torch.from_numpy(data.parts),
        part_names=contents.part_names,
        source=contents.source,
        licence=contents.licence,
        sha256=sha256,
    )


def _up_vector(up_axis: str) -> list[float]:
    """The unit vector of "+z", "-y" and the like."""
    sign = -1.0 if up_axis[0] == "-" else 1.0
    return [sign if axis == up_axis[1] else 0.0 for axis in "xyz"]


def _existing_h5(path: Path) -> Path:
    if not path.exists():
        raise DataError(path, "", f'does not exist: give the path of an .h5 file, or "{furniture.NAME}"')
    if path.suffix.lower() not in (".h5", ".hdf5"):
        raise DataError(path, "", f"got {path.suffix or 'no suffix'}, wanted an .h5 or .hdf5 file: convert it")
    return path


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise DataError(path, "", f"cannot be read ({error.strerror}): check the file and its permissions") from error
    return digest.hexdigest()


def _joined_sha256(sums: Sequence[str]) -> str:
    """One sum for several files, in their order; several splits of one file keep its sum."""
    distinct = _unique(sums)
    return distinct[0] if len(distinct) == 1 else hashlib.sha256("\n".join(distinct).encode()).hexdigest()


def _unique(values: Iterable[str]) -> list[str]:
    """Without repeats and empty strings, in order of first appearance."""
    return [value for value in dict.fromkeys(values) if value]
