"""Our own `.h5` form: a group a split, or one set at the root.

S clouds, N points each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointmae.data import contents_sum
from jointmae.data.hdf5 import Hdf5, open_hdf5
from jointmae.data.layouts.layout import SPLITS, UP_AXES, BadFile, Block, Layout, Names, to_float32
from jointmae.errors import DataError

MAX_CLASSES = 65_536
BLOCK_BYTES = 32 * 2**20  # of points that are read at once


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a split lies in the file."""

    prefix: str  # "train/", or "" for the root
    num_points: int
    rows: NDArray[np.int64]  # [S] of that group, ascending


class OwnH5(Layout):
    """An `.h5` file of this project's form.

    It has groups `train`, `val`, `test`, `extra`, or one set at its root, which a bool array `test` [S] may split. Only
    `points` [S, N, 3] is required; `label` [S], `name` [S] and `part` [S, N] are optional, and so are, as attributes or
    datasets of the root, `classes`, `part_names`, `up_axis` ("+y" if absent), `source` and `licence`. A string
    `contents_sha256` in a group, which `hdf5_writer` puts there, must be the sum of its datasets.

    DataError names the file and item for a wrong type, shape, length or label, an empty set, or a damaged file.
    """

    kind = "jointmae h5"
    tree = """\
FILE.h5
  train/points   float16|32|64 [S, N, 3]   the one thing required; val, test and extra likewise
  train/label    int [S]                   -1 = none                       (optional)
  train/name     str [S]                                                   (optional)
  train/part     uint8 [S, N]                                              (optional)
  classes, part_names, up_axis, source, licence: attributes or datasets of the root (optional)
or, of one set: points, label, name, part at the root, and bool test [S], which splits it (optional)"""

    def __init__(self, path: Path, variant: str = "") -> None:
        self.path, self.variant = path, variant
        with open_hdf5(path) as file:
            self.classes = _texts(file, "classes") or _numbered_classes(file)
            self.part_names = _texts(file, "part_names")
            self.up_axis = _up_axis(file)
            self.source = " ".join(_texts(file, "source"))
            self.licence = " ".join(_texts(file, "licence"))
            self._places = _places(file)
            _check_sum(file, "")
        self.splits = tuple(self._places)

    @classmethod
    def variants(cls, path: Path) -> Names:
        """Any file that is called `.h5` or `.hdf5`."""
        return ("",) if path.suffix.lower() in (".h5", ".hdf5") and path.is_file() else ()

    def files(self) -> list[Path]:
        """The file."""
        return [self.path]

    def num_clouds(self, split: str) -> int:
        """S of the split."""
        return len(self._places[split].rows)

    def blocks(self, split: str, skip_bad: bool = False) -> Iterator[Block | BadFile]:
        """The clouds in the order of the file."""
        place = self._places[split]
        with open_hdf5(self.path) as file:
            if place.prefix:
                _check_sum(file, place.prefix)
            labels, names, parts = self._beside_points(file, place)
            item = f"{place.prefix}points"
            for start, points in file.blocks(item, BLOCK_BYTES):  # [s, N, 3]
                first, last = np.searchsorted(place.rows, (start, start + len(points)))
                inside = place.rows[first:last]
                if len(inside):
                    yield Block(
                        points=to_float32(points[inside - start]).reshape(-1, 3),
                        sizes=np.full(len(inside), place.num_points),
                        labels=labels[inside],
                        names=tuple(names[row] for row in inside),
                        parts=None if parts is None else parts[inside].reshape(-1),
                        file=self.path,
                        item=item,
                    )

    def _beside_points(self, file: Hdf5, place: _Place) -> tuple[NDArray[np.int64], Names, NDArray[np.uint8] | None]:
        """Labels [S], names and parts [S, N] of a whole group, checked."""
        prefix = place.prefix
        num_clouds, num_points = _points_shape(file, f"{prefix}points")
        names = _names(file, f"{prefix}name", num_clouds)
        labels = np.full(num_clouds, -1, dtype=np.int64)
        if f"{prefix}label" in file:
            labels = _integers(file, f"{prefix}label", (num_clouds,), -1, len(self.classes) - 1).astype(np.int64)
        parts = None
        if f"{prefix}part" in file:
            highest = min(len(self.part_names) - 1, 255) if self.part_names else 255
            parts = _integers(file, f"{prefix}part", (num_clouds, num_points), 0, highest).astype(np.uint8)
        return labels, names, parts


def _places(file: Hdf5) -> dict[str, _Place]:
    """The splits, from groups or from one set at the root; an empty half of the latter is left out."""
    grouped = [split for split in SPLITS if f"{split}/points" in file]
    if "points" not in file:
        if not grouped:
            held = ", ".join(file.names[:6]) or "nothing"
            raise DataError(file.path, "", f"got {held}, wanted a dataset train/points or points [S, N, 3]")
        shapes = {split: _points_shape(file, f"{split}/points") for split in grouped}
        return {split: _Place(f"{split}/", N, np.arange(S)) for split, (S, N) in shapes.items()}
    if grouped:
        raise DataError(file.path, "points", f"is at the root and in group {grouped[0]}: keep one of the two")
    S, N = _points_shape(file, "points")
    is_test = np.zeros(S, dtype=bool)
    if "test" in file:
        is_test = _integers(file, "test", (S,), 0, 1).astype(bool)
    halves = {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}
    return {split: _Place("", N, rows) for split, rows in halves.items() if len(rows)}


def _check_sum(file: Hdf5, prefix: str) -> None:
    """The contents of a group against their sum, where the file has one: damage that no checksum of HDF5 shows."""
    stored = f"{prefix}{contents_sum.NAME}"
    if stored not in file:
        return
    total = contents_sum.ContentsSum()
    for name in file.names:
        if name.rpartition("/")[0] != prefix.rstrip("/") or name == stored:
            continue
        is_text = file.dtype(name).kind in "OS"
        total.begin(name.removeprefix(prefix), file.shape(name), None if is_text else file.dtype(name))
        if is_text:
            total.strings(file.strings(name))
        else:
            for _, rows in file.blocks(name, BLOCK_BYTES):
                total.numbers(rows)
    if (total.hexdigest(),) != file.strings(stored):
        raise DataError(file.path, prefix.rstrip("/"), "its contents are not those written: copy the file again")


def _points_shape(file: Hdf5, name: str) -> tuple[int, int]:
    """S and N of a dataset that may be read as points."""
    shape, dtype = file.shape(name), file.dtype(name)
    if len(shape) != 3 or shape[2] != 3 or dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        wanted = "float16, float32 or float64 [S, N, 3]"
        raise DataError(file.path, name, f"got {dtype} {list(shape)}, wanted {wanted}: convert it")
    if 0 in shape:
        raise DataError(file.path, name, f"got shape {list(shape)}, wanted at least one cloud of one point: remove it")
    return shape[0], shape[1]


def _names(file: Hdf5, name: str, num_clouds: int) -> Names:
    """The names of the clouds, or their split and number where the file gives none."""
    if name not in file:
        return tuple(f"{name.removesuffix('name')}{i}" for i in range(num_clouds))
    _expect_shape(file, name, (num_clouds,))
    return file.strings(name)


def _integers(file: Hdf5, name: str, shape: tuple[int, ...], lowest: int, highest: int) -> NDArray[Any]:
    """An integer or bool array of this shape with values in lowest..highest."""
    _expect_shape(file, name, shape)
    if file.dtype(name).kind not in "iub":
        raise DataError(file.path, name, f"got {file.dtype(name)}, wanted integers: convert it")
    values = file.read(name)
    outside = (values < lowest) | (values > highest)
    if outside.any():
        place = np.unravel_index(int(np.argmax(outside)), shape)
        got = f"got {values[place]} at {[int(i) for i in place]}"
        raise DataError(file.path, name, f"{got}, wanted {lowest}..{highest}: correct the value or the list of names")
    return values


def _expect_shape(file: Hdf5, name: str, shape: tuple[int, ...]) -> None:
    if file.shape(name) != shape:
        got = f"got shape {list(file.shape(name))}"
        raise DataError(file.path, name, f"{got}, wanted {list(shape)}, one entry per cloud or point of `points`")


def _numbered_classes(file: Hdf5) -> Names:
    """Classes "0", "1", ... up to the highest label of any split, for a file that does not name its classes."""
    labels = [name for name in (*(f"{split}/label" for split in SPLITS), "label") if name in file]
    highest = [_integers(file, name, file.shape(name), -1, MAX_CLASSES - 1).max(initial=-1) for name in labels]
    return tuple(str(i) for i in range(int(max(highest, default=-1)) + 1))


def _texts(file: Hdf5, key: str) -> Names:
    """Strings from an attribute or a dataset of the root; none if the file has neither."""
    if key in file:
        return file.strings(key)
    values = np.atleast_1d(file.attributes.get(key, np.empty(0, dtype="S")))
    if values.dtype.kind not in "SUO" or values.ndim != 1:
        raise DataError(file.path, key, f"got {values.dtype} {list(values.shape)}, wanted a string or a list of them")
    return tuple(value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in values)


def _up_axis(file: Hdf5) -> str:
    up_axis = " ".join(_texts(file, "up_axis")) or "+y"
    if up_axis not in UP_AXES:
        raise DataError(file.path, "up_axis", f"got {up_axis!r}, wanted one of {', '.join(UP_AXES)}: correct it")
    return up_axis
