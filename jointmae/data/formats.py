"""Read point clouds from files, as NumPy arrays, checked: the file's word is never taken.

S clouds, N points each.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointmae.data import contents_sum
from jointmae.data.hdf5 import Hdf5, open_hdf5
from jointmae.data.layouts.layout import SPLITS, UP_AXES, Names
from jointmae.errors import DataError

MAX_CLASSES = 65_536


@dataclass(frozen=True, eq=False)
class Split:
    """The clouds of one split, neither centred nor scaled; float64 ones are moved so that their first point is 0."""

    points: NDArray[np.float32]  # [S, N, 3], finite
    labels: NDArray[np.int64]  # [S], -1 = none
    names: Names  # S of them
    parts: NDArray[np.uint8] | None  # [S, N]


@dataclass(frozen=True, eq=False)
class FileContents:
    """Everything read from one file."""

    path: Path
    splits: dict[str, Split]
    classes: Names
    part_names: Names
    up_axis: str
    source: str
    licence: str


def read_h5(path: str | Path, splits: Names | None = None) -> FileContents:
    """Read the named splits of our `.h5` form, or all it has.

    The file has groups `train`, `test`, `extra`, or one set at its root, which a bool array `test` [S] may split. Only
    `points` [S, N, 3] is required; `label` [S], `name` [S] and `part` [S, N] are optional, and so are, as attributes or
    datasets of the root, `classes`, `part_names`, `up_axis` ("+y" if absent), `source` and `licence`. A string
    `contents_sha256` in a group, which `hdf5_writer` puts there, must be the sum of its datasets.

    Raises DataError naming the file and item for a wrong type, shape, length or label, a coordinate that is not finite,
    an empty set, or a split that the file does not have.
    """
    with open_hdf5(path) as file:
        classes = _texts(file, "classes") or _numbered_classes(file)
        part_names = _texts(file, "part_names")
        chosen = _read_splits(file, splits, classes, part_names)
        for prefix in ("", *(f"{split}/" for split in chosen)):
            _check_sum(file, prefix)
        return FileContents(
            path=file.path,
            splits=chosen,
            classes=classes,
            part_names=part_names,
            up_axis=_up_axis(file),
            source=" ".join(_texts(file, "source")),
            licence=" ".join(_texts(file, "licence")),
        )


def _check_sum(file: Hdf5, prefix: str) -> None:
    """The contents of a group against their sum, where the file has one: damage that no checksum of HDF5 shows."""
    if f"{prefix}{contents_sum.NAME}" not in file:
        return
    names = [name for name in file.names if name.rpartition("/")[0] == prefix.rstrip("/")]
    datasets = {
        name.removeprefix(prefix): file.strings(name) if file.dtype(name).kind in "OS" else file.read(name)
        for name in names
        if not name.endswith(contents_sum.NAME)
    }
    if (contents_sum.sum_of(datasets),) != file.strings(f"{prefix}{contents_sum.NAME}"):
        raise DataError(file.path, prefix.rstrip("/"), "its contents are not those written: copy the file again")


def splits_of_h5(path: str | Path) -> Names:
    """The names of the splits that `read_h5` finds in a file. Raises DataError as it does."""
    with open_hdf5(path) as file:
        if "points" not in file:
            return _choose(file, _grouped_splits(file), None)
        if "test" not in file:
            return ("train",)
        is_test = _integers(file, "test", file.shape("points")[:1], 0, 1)  # [S]
        return tuple(split for split, here in (("train", not is_test.all()), ("test", is_test.any())) if here)


def _grouped_splits(file: Hdf5) -> list[str]:
    return [split for split in SPLITS if f"{split}/points" in file]


def _read_splits(file: Hdf5, wanted: Names | None, classes: Names, part_names: Names) -> dict[str, Split]:
    """The wanted splits, from groups or from one set at the root."""
    grouped = _grouped_splits(file)
    if "points" not in file:
        chosen = _choose(file, grouped, wanted)
        return {split: _read_split(file, f"{split}/", classes, part_names) for split in chosen}
    if grouped:
        raise DataError(file.path, "points", f"is at the root and in group {grouped[0]}: keep one of the two")
    halves = _halves(file, _read_split(file, "", classes, part_names))
    return {split: halves[split] for split in _choose(file, list(halves), wanted)}


def _choose(file: Hdf5, found: list[str], wanted: Names | None) -> Names:
    if not found:
        held = ", ".join(file.names[:6]) or "nothing"
        raise DataError(file.path, "", f"got {held}, wanted a dataset train/points or points [S, N, 3]")
    for split in wanted or ():
        if split not in found:
            raise DataError(file.path, split, f"there is no such split: the file has {', '.join(found)}")
    return tuple(found) if wanted is None else wanted


def _read_split(file: Hdf5, prefix: str, classes: Names, part_names: Names) -> Split:
    """The datasets below `prefix` ("train/", or "" for the root), checked against each other."""
    num_clouds, num_points = _points_shape(file, f"{prefix}points")
    names = _names(file, f"{prefix}name", num_clouds)
    labels = np.full(num_clouds, -1, dtype=np.int64)  # [S]
    if f"{prefix}label" in file:
        labels = _integers(file, f"{prefix}label", (num_clouds,), -1, len(classes) - 1).astype(np.int64)
    parts = None
    if f"{prefix}part" in file:
        highest = len(part_names) - 1 if part_names else 255
        parts = _integers(file, f"{prefix}part", (num_clouds, num_points), 0, min(highest, 255)).astype(np.uint8)
    return Split(_points(file, f"{prefix}points", names), labels, names, parts)


def _halves(file: Hdf5, whole: Split) -> dict[str, Split]:
    """A set at the root split by its `test` array; without one, all of it is `train`. An empty half is left out."""
    if "test" not in file:
        return {"train": whole}
    is_test = _integers(file, "test", whole.labels.shape, 0, 1).astype(bool)  # [S]
    return {split: _select(whole, rows) for split, rows in (("train", ~is_test), ("test", is_test)) if rows.any()}


def _select(split: Split, rows: NDArray[np.bool_]) -> Split:
    names = tuple(name for name, kept in zip(split.names, rows, strict=True) if kept)
    parts = None if split.parts is None else split.parts[rows]
    return Split(split.points[rows], split.labels[rows], names, parts)


def _points_shape(file: Hdf5, name: str) -> tuple[int, int]:
    """S and N of a dataset that may be read as points."""
    shape, dtype = file.shape(name), file.dtype(name)
    if len(shape) != 3 or shape[2] != 3 or dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        wanted = "float16, float32 or float64 [S, N, 3]"
        raise DataError(file.path, name, f"got {dtype} {list(shape)}, wanted {wanted}: convert it")
    if 0 in shape:
        raise DataError(file.path, name, f"got shape {list(shape)}, wanted at least one cloud of one point: remove it")
    return shape[0], shape[1]


def _points(file: Hdf5, name: str, names: Names) -> NDArray[np.float32]:
    points = file.read(name)  # [S, N, 3]
    if points.dtype == np.float64:  # map coordinates: float32 would round the shape away, so the offset goes first
        points = points - np.nan_to_num(points[:, :1])
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is named below
        points = points.astype(np.float32)
    finite = np.isfinite(points)
    if not finite.all():
        cloud, row, _ = np.unravel_index(int(np.argmin(finite)), points.shape)
        where = f"cloud {cloud} ({names[cloud]!r}), row {row}"
        raise DataError(file.path, name, f"{where} is {points[cloud, row].tolist()}, wanted finite float32: repair it")
    return points


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
