"""What every layout of a data set has: how it is recognised, what its folder looks like, and its clouds in blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from jointmae.data.splits import SPLITS as SPLITS
from jointmae.data.splits import UP_AXES as UP_AXES
from jointmae.data.splits import Names as Names


@dataclass(frozen=True, eq=False)
class Block:
    """Some clouds of one split, b of them with T points in all, as the file has them: not centred, not scaled.

    Float64 coordinates are moved so that a cloud's first point is 0 before they become float32 (`to_float32`).
    Coordinates may be NaN or infinite: `jointmae.data.load` refuses or drops them.
    """

    points: NDArray[np.float32]  # [T, 3], cloud after cloud
    sizes: NDArray[np.int64]  # [b], each >= 1
    labels: NDArray[np.int64]  # [b], -1 = none
    names: Names  # b of them; the path below the root where every cloud is a file of its own
    parts: NDArray[np.uint8] | None  # [T]
    file: Path  # where the clouds come from: a file of many, or the root of files of one each
    item: str = ""  # the dataset in that file; empty where every cloud is a file of its own

    def __len__(self) -> int:
        """The number of clouds, b."""
        return len(self.sizes)


@dataclass(frozen=True)
class BadFile:
    """A file that could not be read, where bad files are left out."""

    name: str  # its path below the root
    what: str  # what is wrong with it


class Layout(ABC):
    """A data set on disk that has been recognised; nothing of its clouds has been read yet.

    A layout is constructed from the path that the user gave and one of the variants that `variants` found there.
    Constructing it reads lists and names only, and raises DataError naming the file, the item and the remedy.
    """

    kind: ClassVar[str]
    """Its name in messages and reports, as in "ScanObjectNN"."""
    tree: ClassVar[str]
    """The folder tree that it expects, as a picture in text."""

    rows_are_random: ClassVar[bool] = True
    """Whether the first points of a cloud are a fair sample of it, as a reader of the set may expect."""

    path: Path
    variant: str  # one of `variants`
    classes: Names
    part_names: Names
    up_axis: str  # one of UP_AXES
    source: str
    licence: str
    splits: Names  # those of SPLITS that are there

    @abstractmethod
    def __init__(self, path: Path, variant: str) -> None: ...

    @classmethod
    @abstractmethod
    def variants(cls, path: Path) -> Names:
        """The variants of this layout at `path`: none where it is something else, ("",) where there is just one form.

        Looks at names only, opens no file, and never raises.
        """

    @abstractmethod
    def files(self) -> list[Path]:
        """Every file that the set is read from, lists included, in a fixed order: what a cache depends on."""

    @abstractmethod
    def num_clouds(self, split: str) -> int:
        """Clouds of a split, bad files included, as the lists or headers say."""

    @abstractmethod
    def blocks(self, split: str, skip_bad: bool = False) -> Iterator[Block | BadFile]:
        """The clouds of a split in the set's own order; with `skip_bad` a file that cannot be read is a BadFile.

        Raises DataError otherwise.
        """


def to_float32(points: NDArray[np.floating]) -> NDArray[np.float32]:
    """Points [N, 3] or [S, N, 3] as float32; float64 ones relative to their cloud's first point.

    Map coordinates are float64 with an offset of 10^6 m: float32 would round the shape away. What float32 cannot hold
    becomes infinite.
    """
    if points.dtype == np.float64:
        points = points - np.nan_to_num(points[..., :1, :])
    with np.errstate(over="ignore"):
        return points.astype(np.float32, copy=False)
