"""Clouds of an official set as blocks: from HDF5 files of many clouds, or from files of one cloud each.

S clouds of a file, N points each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointmae.data.hdf5 import Hdf5, open_hdf5
from jointmae.data.layouts.layout import BadFile, Block, to_float32
from jointmae.data.layouts.lists import expect_inside
from jointmae.data.reading import Request, read_clouds
from jointmae.errors import DataError

MAX_CLOUDS = 256
"""Clouds of a block."""
MAX_POINTS = 2**22
"""Points at which a block of fewer clouds is full: 48 MB."""


@dataclass(frozen=True)
class Entry:
    """A file of one cloud: its path below the root, and its label."""

    name: str
    label: int


Read = Callable[[Path, Sequence[Entry]], Iterable["tuple[NDArray[Any], NDArray[np.uint8] | None] | DataError"]]
"""(root, entries) -> points [N, 3] and parts [N] of each, or what is wrong with it, in their order."""


def count_hdf5(root: Path, files: Sequence[Path]) -> int:
    """Clouds of some files, as their headers say. Raises DataError."""
    total = 0
    for path in files:
        expect_inside(root, path)
        with open_hdf5(path) as file:
            total += _sizes(file)[0]
    return total


def hdf5_blocks(
    root: Path, files: Sequence[Path], num_classes: int, num_parts: int = 0, skip_bad: bool = False
) -> Iterator[Block | BadFile]:
    """`data` [S, N, 3], `label` [S] or [S, 1] and, with parts, `pid` [S, N] of files below `root`."""
    for path in files:
        try:
            expect_inside(root, path)
            with open_hdf5(path) as file:
                contents = _read(file, num_classes, num_parts)
        except DataError as error:
            if not skip_bad:
                raise
            yield bad_file(root, path, error)
            continue
        yield from _slices(path, *contents)


def bad_file(root: Path, path: Path, error: DataError) -> BadFile:
    """What is reported of a file that was left out."""
    return BadFile(path.relative_to(root).as_posix(), f"{error.item}: {error.what}" if error.item else error.what)


def _read(
    file: Hdf5, num_classes: int, num_parts: int
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.uint8] | None]:
    """Points [S, N, 3], labels [S] and parts [S, N]; the cheap ones first, so that they fail before memory is taken."""
    S, N = _sizes(file)
    labels = _labels(file, S, num_classes)
    parts = _integers(file, "pid", (S, N), num_parts) if num_parts else None
    return file.read("data"), labels, parts


def _slices(
    path: Path, points: NDArray[Any], labels: NDArray[np.int64], parts: NDArray[np.uint8] | None
) -> Iterator[Block]:
    S, N, _ = points.shape
    step = max(1, min(MAX_CLOUDS, MAX_POINTS // N))
    for start in range(0, S, step):
        stop = min(start + step, S)
        yield Block(
            points=to_float32(points[start:stop]).reshape(-1, 3),  # [b * N, 3]
            sizes=np.full(stop - start, N, dtype=np.int64),
            labels=labels[start:stop],
            names=tuple(f"{path.name}/{i}" for i in range(start, stop)),
            parts=None if parts is None else parts[start:stop].reshape(-1),  # [b * N]
            file=path,
            item="data",
        )


def _sizes(file: Hdf5) -> tuple[int, int]:
    """S and N, both at least 1."""
    if "data" not in file:
        held = ", ".join(file.names[:6]) or "nothing"
        raise DataError(file.path, "", f"got {held}, wanted a dataset data [S, N, 3]: is it a file of this set?")
    shape, dtype = file.shape("data"), file.dtype("data")
    if len(shape) != 3 or shape[2] != 3 or 0 in shape or dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        wanted = "float16, float32 or float64 [S, N, 3] with at least one cloud of one point"
        raise DataError(file.path, "data", f"got {dtype} {list(shape)}, wanted {wanted}: copy the file again")
    return shape[0], shape[1]


def _labels(file: Hdf5, S: int, num_classes: int) -> NDArray[np.int64]:
    """[S]; PointNet's files have a column, ScanObjectNN's a row."""
    shape = (S, 1) if "label" in file and len(file.shape("label")) == 2 else (S,)
    return _integers(file, "label", shape, num_classes).reshape(S).astype(np.int64)


def _integers(file: Hdf5, name: str, shape: tuple[int, ...], count: int) -> NDArray[np.uint8]:
    """An array of integers in 0..count - 1, of which there are at most 256."""
    if name not in file:
        raise DataError(file.path, name, f"is missing, wanted integers {list(shape)}: copy the file again")
    if file.shape(name) != shape or file.dtype(name).kind not in "iu":
        got = f"got {file.dtype(name)} {list(file.shape(name))}"
        raise DataError(file.path, name, f"{got}, wanted integers {list(shape)}, as `data` has: copy the file again")
    values = file.read(name)
    outside = (values < 0) | (values >= count)
    if outside.any():
        place = [int(i) for i in np.unravel_index(int(np.argmax(outside)), shape)]
        got = f"got {values[tuple(place)]} at {place}, wanted 0..{count - 1}"
        raise DataError(file.path, name, f"{got}: the file is damaged or of another set")
    return values.astype(np.uint8)


@dataclass
class _Pending:
    """The clouds of a block that is not full yet."""

    points: list[NDArray[np.float32]] = field(default_factory=list)
    parts: list[NDArray[np.uint8]] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)

    def full(self) -> bool:
        return len(self.entries) >= MAX_CLOUDS or sum(map(len, self.points)) >= MAX_POINTS

    def block(self, root: Path) -> Block:
        return Block(
            points=np.concatenate(self.points),  # [T, 3]
            sizes=np.array([len(points) for points in self.points], dtype=np.int64),
            labels=np.array([entry.label for entry in self.entries], dtype=np.int64),
            names=tuple(entry.name for entry in self.entries),
            parts=np.concatenate(self.parts) if self.parts else None,  # [T]
            file=root,
        )


def file_blocks(root: Path, entries: Sequence[Entry], read: Read, skip_bad: bool = False) -> Iterator[Block | BadFile]:
    """Files of one cloud each, in order; a bad file comes before the block of the clouds around it."""
    pending = _Pending()
    for entry, result in zip(entries, _read_inside(root, entries, read), strict=True):
        if isinstance(result, DataError):
            if not skip_bad:
                raise result
            yield bad_file(root, root / entry.name, result)
            continue
        points, parts = result
        pending.points.append(to_float32(points))
        pending.entries.append(entry)
        if parts is not None:
            pending.parts.append(parts)
        if pending.full():
            yield pending.block(root)
            pending = _Pending()
    if pending.entries:
        yield pending.block(root)


def read_points(
    root: Path, entries: Sequence[Entry]
) -> Iterable[tuple[NDArray[Any], NDArray[np.uint8] | None] | DataError]:
    """`Read` of files of points without parts, by the reader of their format."""
    requests = (Request(root / entry.name) for entry in entries)
    for cloud in read_clouds(requests):
        yield cloud if isinstance(cloud, DataError) else (cloud.points, None)


def _read_inside(
    root: Path, entries: Sequence[Entry], read: Read
) -> Iterator[tuple[NDArray[Any], NDArray[np.uint8] | None] | DataError]:
    """`read` of the entries that do not lead out of `root`, and an error for the others."""
    outside = {entry.name: error for entry in entries if (error := _leads_out(root, entry))}
    results = iter(read(root, [entry for entry in entries if entry.name not in outside]))
    for entry in entries:
        yield outside[entry.name] if entry.name in outside else next(results)


def _leads_out(root: Path, entry: Entry) -> DataError | None:
    try:
        expect_inside(root, root / entry.name)
    except DataError as error:
        return error
    return None
