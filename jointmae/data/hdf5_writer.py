"""Write our .h5 form, so that every byte of it is a function of the contents and no change of one goes unnoticed.

Chunks carry Fletcher's checksum, HDF5's own structures theirs (in its latest form), and each group the SHA-256 of its
contents (`contents_sum`): a chunk of zeros has a valid checksum of zero. Strings have a fixed length, as HDF5 keeps the
others, and attributes, without a checksum. No time is stored.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from jointmae.data import contents_sum
from jointmae.data.contents_sum import ContentsSum
from jointmae.data.hdf5_sink import Sink
from jointmae.files import disk_errors, sync_folder

_CHUNK_BYTES = 2**20

Column = NDArray[np.generic] | tuple[str, ...]


@dataclass(frozen=True, eq=False)
class SplitToWrite:
    """The clouds of one split, their points one block after the other."""

    shape: tuple[int, int, int]  # [S, N, 3]
    dtype: np.dtype[np.generic]
    points: Iterable[NDArray[np.generic]]  # blocks [b, N, 3], S clouds in all
    columns: Mapping[str, Column]  # name, and what else there is: label [S], part [S, N]


def write_h5(path: Path, splits: Mapping[str, SplitToWrite], texts: Mapping[str, tuple[str, ...]]) -> None:
    """Writes `path` by way of a temporary neighbour, synced before it takes the name; empty `texts` are left out.

    Raises DiskError naming the file and leaves what was there.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with disk_errors(path):
            with temporary.open("wb+", buffering=0) as file:
                sink = Sink(file)
                _write(sink, splits, {name: values for name, values in texts.items() if values})
                sink.check()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _write(sink: Sink, splits: Mapping[str, SplitToWrite], texts: Mapping[str, tuple[str, ...]]) -> None:
    with _create(sink) as file:
        _write_columns(file, dict(texts))
        for name, split in splits.items():
            _write_split(_create_group(file, name), split, sink)


def _create(sink: Sink) -> h5py.File:
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, sink)
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_obj_track_times(False)
    return h5py.File(h5py.h5f.create(b"sink", h5py.h5f.ACC_TRUNC, fcpl=creation, fapl=access))


def _create_group(file: h5py.File, name: str) -> h5py.Group:
    creation = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
    creation.set_obj_track_times(False)
    return h5py.Group(h5py.h5g.create(file.id, name.encode(), gcpl=creation))


def _write_split(group: h5py.Group, split: SplitToWrite, sink: Sink) -> None:
    """All datasets in the order of their names, and the sum of them."""
    total = ContentsSum()
    for name in sorted([*split.columns, "points"]):
        if name == "points":
            _write_points(group, split, total, sink)
        else:
            _write_column(group, name, split.columns[name], total)
    _write_column(group, contents_sum.NAME, (total.hexdigest(),), ContentsSum())


def _write_columns(group: h5py.Group, columns: Mapping[str, Column]) -> None:
    total = ContentsSum()
    for name, values in sorted(columns.items()):
        _write_column(group, name, values, total)
    _write_column(group, contents_sum.NAME, (total.hexdigest(),), ContentsSum())


def _write_points(group: h5py.Group, split: SplitToWrite, total: ContentsSum, sink: Sink) -> None:
    dataset = _create_dataset(group, "points", split.shape, split.dtype)
    total.begin("points", split.shape, split.dtype)
    start = 0
    for block in split.points:
        dataset[start : start + len(block)] = block
        total.numbers(block)
        start += len(block)
        sink.check()
    assert start == split.shape[0]


def _write_column(group: h5py.Group, name: str, values: Column, total: ContentsSum) -> None:
    if isinstance(values, tuple):
        encoded = [value.encode() for value in values]
        assert not any(b"\0" in value for value in encoded)
        dtype = h5py.string_dtype("utf-8", max(1, *map(len, encoded)))
        _create_dataset(group, name, (len(values),), dtype)[...] = np.array(encoded, dtype=dtype)
        total.begin(name, (len(values),), None)
        total.strings(values)
    else:
        _create_dataset(group, name, values.shape, values.dtype)[...] = values
        total.begin(name, values.shape, values.dtype)
        total.numbers(values)


def _create_dataset(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> h5py.Dataset:
    """Rows of about 1 MiB a chunk."""
    row_bytes = max(1, int(np.prod(shape[1:])) * dtype.itemsize)
    chunks = (min(shape[0], max(1, _CHUNK_BYTES // row_bytes)), *shape[1:])
    return group.create_dataset(name, shape, dtype, chunks=chunks, fletcher32=True, track_times=False)
