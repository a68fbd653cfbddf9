"""The one gate through which HDF5 is opened: nothing in a file can lead out of it or make it larger than it is.

HDF5 is a file system with links, foreign storage and a plug-in loader, and its sizes are claims. Before any data is
read the gate walks the file by hard links only and refuses whatever our formats do not need; each dataset's declared
size is held against the bytes stored for it, and all stored bytes against the file. HDF5 inflates a chunk to whatever
its zlib stream holds (1 MB stored gave 1 GB in a chunk declared as 1 kB): chunks are inflated here first, with a bound.
Strings of variable length are looked up in their heaps before HDF5 follows them (`hdf5_heap`).
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from jointmae.data.hdf5_heap import REFERENCE, Heaps
from jointmae.errors import DataError

MAX_BYTES = 16 * 2**30  # all datasets of a file together, as declared
MAX_CHUNK_BYTES = 256 * 2**20  # HDF5 holds whole chunks in memory
MAX_RATIO = 1100  # deflate reaches 1032
MAX_STRING_BYTES = 256 * 2**20  # the strings of one dataset, one attribute
MAX_OBJECTS, MAX_NESTING = 10_000, 16

_COMPRESSORS = {h5py.h5z.FILTER_DEFLATE: "gzip", h5py.h5z.FILTER_LZF: "lzf"}
_FILTERS = {h5py.h5z.FILTER_SHUFFLE: "shuffle", h5py.h5z.FILTER_FLETCHER32: "fletcher32", **_COMPRESSORS}
_MANY_BYTES = 2**20  # of a dataset in which no heap is looked for
_CHUNK_SLACK = 64  # bytes a compressor may add to a chunk that does not compress: headers and a checksum
_DAMAGED = "cannot be read: the file is damaged, copy it again"
_REWRITE = "write the data into a new file with plain datasets"


@dataclass(frozen=True, eq=False)
class Hdf5:
    """A file that passed the gate: `names` of its datasets ("train/points") and the attributes of its root."""

    path: Path
    attributes: dict[str, Any]
    _datasets: dict[str, h5py.Dataset] = field(repr=False)
    _heaps: Heaps = field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The paths of all datasets, sorted."""
        return tuple(sorted(self._datasets))

    def __contains__(self, name: str) -> bool:
        """Whether the file has a dataset of this path."""
        return name in self._datasets

    def shape(self, name: str) -> tuple[int, ...]:
        """The declared shape of a dataset."""
        return tuple(self._datasets[name].shape)

    def dtype(self, name: str) -> np.dtype[Any]:
        """The type of a dataset in memory; object for strings of variable length."""
        dtype: np.dtype[Any] = self._datasets[name].dtype
        return dtype

    def read(self, name: str) -> NDArray[Any]:
        """A dataset of numbers, whole, as it is stored. Raises DataError where its bytes are damaged."""
        dataset = self._numbers(name)
        with _as_data_error(self.path, name):
            return np.asarray(dataset[()])

    def blocks(self, name: str, block_bytes: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """The rows of a dataset [S, ...] of numbers in turn, about `block_bytes` at once: the first row's number, rows.

        Raises DataError where its bytes are damaged.
        """
        dataset = self._numbers(name)
        step = max(1, block_bytes // max(1, prod(dataset.shape[1:]) * _item_bytes(dataset)))
        if dataset.chunks:  # whole chunks: none is inflated twice
            step = -(-step // dataset.chunks[0]) * dataset.chunks[0]
        for start in range(0, len(dataset), step):
            with _as_data_error(self.path, name):
                rows = np.asarray(dataset[start : start + step])
            yield start, rows

    def _numbers(self, name: str) -> h5py.Dataset:
        """A dataset whose type and chunks have been looked at."""
        dataset = self._datasets[name]
        with _as_data_error(self.path, name):
            if dataset.dtype.kind not in "iufb":
                raise DataError(self.path, name, f"got values of type {_type_name(dataset)}, wanted numbers")
            _check_chunks(self.path, name, dataset)
        return dataset

    def strings(self, name: str) -> tuple[str, ...]:
        """A dataset [S] of UTF-8 strings. Raises DataError for another type or shape, or damaged bytes."""
        dataset = self._datasets[name]
        with _as_data_error(self.path, name):
            if dataset.dtype.kind not in "OS" or len(dataset.shape) != 1:
                got = f"{_type_name(dataset)} {tuple(dataset.shape)}"
                raise DataError(self.path, name, f"got {got}, wanted strings in one dimension")
            _check_chunks(self.path, name, dataset)
            if dataset.dtype.kind == "O":
                size = sum(self._heaps.check(name, part) for part in _references(self.path, name, dataset))
            else:
                size = prod(dataset.shape) * dataset.dtype.itemsize
            if size > MAX_STRING_BYTES:
                what = f"its strings take {size:,} bytes, wanted at most {MAX_STRING_BYTES:,}"
                raise DataError(self.path, name, f"{what}: is it a list of names?")
            return tuple(value.decode() for value in dataset[()])


@contextmanager
def open_hdf5(path: str | Path, max_bytes: int = MAX_BYTES) -> Iterator[Hdf5]:
    """Open `path` read-only and check all of it; datasets are read by name inside the `with`.

    Raises DataError for a missing, damaged or truncated file; for soft, external and user-defined links, objects
    reached twice, external storage, virtual datasets; for filters other than gzip, lzf, shuffle and fletcher32; for
    types other than numbers and strings; and for sizes that the file cannot hold or that exceed `max_bytes`.
    """
    path = Path(path)
    if not path.is_file():
        what = "is not a regular file" if path.exists() else "does not exist"
        raise DataError(path, "", f"{what}: give the path of an HDF5 file")
    with _as_data_error(path, "", "cannot be opened as HDF5: it is damaged, truncated or of another format"):
        file = h5py.File(path, "r")
    with file:
        with _as_data_error(path, ""):
            creation = file.id.get_create_plist()
            if creation.get_sizes() != (8, 8):
                raise DataError(path, "", f"got addresses or lengths that are not 8 bytes wide: {_REWRITE}")
            datasets = dict(_walk(path, file))
            _check_totals(path, datasets, max_bytes)
            ranges = [place for dataset in datasets.values() for place in _large_ranges(dataset)]
            heaps = Heaps(path, creation.get_userblock(), ranges)
            attributes = dict(_root_attributes(path, file, heaps))
        yield Hdf5(path, attributes, datasets, heaps)


def _walk(path: Path, root: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    """Every dataset below `root`, each checked, by hard links only."""
    seen = {h5py.h5o.get_info(root.id).addr}
    todo: list[tuple[str, h5py.Group]] = [("", root)]
    while todo:
        prefix, group = todo.pop()
        for key in group:
            name = f"{prefix}{key}"
            kind, address = _follow(path, name, group, key)
            if address in seen:
                raise DataError(path, name, f"is a second link to an object of this file: {_REWRITE}")
            seen.add(address)
            if len(seen) > MAX_OBJECTS or name.count("/") > MAX_NESTING:
                limits = f"{MAX_OBJECTS} objects, {MAX_NESTING} levels"
                raise DataError(path, name, f"the file holds more than {limits}: is it a data set?")
            if kind == h5py.h5o.TYPE_GROUP:
                todo.append((f"{name}/", h5py.Group(h5py.h5g.open(group.id, key.encode()))))
            elif kind == h5py.h5o.TYPE_DATASET:
                dataset = h5py.Dataset(h5py.h5d.open(group.id, key.encode()))
                _check_dataset(path, name, dataset)
                yield name, dataset
            else:
                raise DataError(path, name, f"is neither a group nor a dataset: {_REWRITE}")


def _follow(path: Path, name: str, group: h5py.Group, key: str) -> tuple[int, int]:
    """The type and address of what a hard link leads to; any other link is an error and is not followed."""
    link = group.get(key, getlink=True)
    if not isinstance(link, h5py.HardLink):
        kind = "an external link" if isinstance(link, h5py.ExternalLink) else "a soft link"
        raise DataError(path, name, f"is {kind}, and links are not followed: {_REWRITE}")
    info = h5py.h5o.get_info(group.id, key.encode())
    return info.type, info.addr


def _check_dataset(path: Path, name: str, dataset: h5py.Dataset) -> None:
    """Storage first: asking a virtual dataset for its shape would already open other files."""
    plist = dataset.id.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL:
        raise DataError(path, name, f"is a virtual dataset, which reads other files: {_REWRITE}")
    if plist.get_external_count():
        raise DataError(path, name, f"is stored in another file: {_REWRITE}")
    filters = _filters(dataset)
    unknown = [str(code) for code in filters if code not in _FILTERS]
    if unknown:
        wanted = ", ".join(_FILTERS.values())
        raise DataError(path, name, f"got HDF5 filter {unknown[0]}, wanted one of {wanted}: {_REWRITE}")
    if len(set(filters)) < len(filters) or sum(code in _COMPRESSORS for code in filters) > 1:
        raise DataError(path, name, f"is compressed more than once: {_REWRITE}")
    _check_type(path, name, dataset)
    _check_size(path, name, dataset, any(code in _COMPRESSORS for code in filters))


def _check_type(path: Path, name: str, dataset: h5py.Dataset) -> None:
    """Numbers, booleans and strings pass; references, compounds and variable-length arrays do not."""
    kind = dataset.dtype.kind
    if dataset.shape is None or not (kind in "iufbS" or h5py.check_string_dtype(dataset.dtype)):
        raise DataError(path, name, f"got values of type {_type_name(dataset)}, wanted numbers or strings: {_REWRITE}")


def _check_size(path: Path, name: str, dataset: h5py.Dataset, compressed: bool) -> None:
    """The declared size against the stored bytes, which `_check_totals` holds against the file."""
    item_bytes = _item_bytes(dataset)
    declared, stored = prod(dataset.shape) * item_bytes, dataset.id.get_storage_size()
    possible = stored * MAX_RATIO if compressed else stored
    if declared > possible:
        size = f"shape {tuple(dataset.shape)} needs {declared:,} bytes"
        raise DataError(path, name, f"{size}, but {stored:,} are stored: the file is damaged or not fully written")
    if dataset.chunks and prod(dataset.chunks) * item_bytes > MAX_CHUNK_BYTES:
        got = f"got chunks of {prod(dataset.chunks) * item_bytes:,} bytes"
        raise DataError(path, name, f"{got}, wanted at most {MAX_CHUNK_BYTES:,}: write it with smaller chunks")


def _check_totals(path: Path, datasets: dict[str, h5py.Dataset], max_bytes: int) -> None:
    """No two datasets share bytes, so all that is stored must fit into the file."""
    stored = sum(dataset.id.get_storage_size() for dataset in datasets.values())
    if stored > path.stat().st_size:
        what = f"its datasets claim {stored:,} stored bytes, the file has {path.stat().st_size:,}"
        raise DataError(path, "", f"{what}: the file is damaged, copy it again")
    declared = sum(prod(dataset.shape) * dataset.dtype.itemsize for dataset in datasets.values())
    if declared > max_bytes:
        raise DataError(path, "", f"holds {declared:,} bytes of data, wanted at most {max_bytes:,}: split the file")


def _check_chunks(path: Path, name: str, dataset: h5py.Dataset) -> None:
    """Every stored chunk of a gzip or lzf dataset yields what it declares, before HDF5 inflates it without a bound."""
    filters = _filters(dataset)
    if not any(code in _COMPRESSORS for code in filters):
        return
    chunk_bytes = prod(dataset.chunks) * _item_bytes(dataset)
    for i, info in enumerate(_chunks(dataset)):
        if info.size > chunk_bytes + chunk_bytes // 8 + _CHUNK_SLACK:
            what = f"chunk {i} stores {info.size:,} bytes for {chunk_bytes:,}"
            raise DataError(path, name, f"{what}: the file is damaged")
        if h5py.h5z.FILTER_DEFLATE in _applied(filters, info):
            _, stored = dataset.id.read_direct_chunk(info.chunk_offset)
            if len(zlib.decompressobj().decompress(stored, chunk_bytes + 1)) != chunk_bytes:
                raise DataError(path, name, f"chunk {i} does not inflate to {chunk_bytes:,} bytes: the file is damaged")


def _references(path: Path, name: str, dataset: h5py.Dataset) -> Iterator[bytes]:
    """What a dataset [S] of strings of variable length stores for them, in pieces, after `_check_chunks`.

    Raises DataError for forms in which only a file that was made by hand has them.
    """
    plist, filters = dataset.id.get_create_plist(), _filters(dataset)
    with path.open("rb") as file:
        if dataset.chunks:
            for info in _chunks(dataset):
                content = os.pread(file.fileno(), info.size, info.byte_offset)
                applied = _applied(filters, info)
                if applied == [h5py.h5z.FILTER_DEFLATE]:
                    content = zlib.decompress(content)
                elif applied:
                    raise DataError(path, name, f"its strings are stored in an unusual way: {_REWRITE}")
                yield content[: (len(dataset) - info.chunk_offset[0]) * REFERENCE.size]
        elif plist.get_layout() != h5py.h5d.CONTIGUOUS or plist.fill_value_defined() != h5py.h5d.FILL_VALUE_DEFAULT:
            raise DataError(path, name, f"its strings are stored in an unusual way: {_REWRITE}")
        elif dataset.id.get_offset() is not None:
            yield os.pread(file.fileno(), dataset.id.get_storage_size(), dataset.id.get_offset())


def _chunks(dataset: h5py.Dataset) -> list[h5py.h5d.StoreInfo]:
    """All chunks that are stored, in one walk: asked for one by one, HDF5 begins each time at the first."""
    chunks: list[h5py.h5d.StoreInfo] = []
    dataset.id.chunk_iter(chunks.append)
    return chunks


def _large_ranges(dataset: h5py.Dataset) -> Iterator[tuple[int, int]]:
    """Where the bytes of a large dataset lie in the file, [start, end)."""
    size = dataset.id.get_storage_size()
    if size < _MANY_BYTES:
        return
    if dataset.chunks:
        yield from ((info.byte_offset, info.byte_offset + info.size) for info in _chunks(dataset))
    elif dataset.id.get_offset() is not None:
        yield dataset.id.get_offset(), dataset.id.get_offset() + size


def _root_attributes(path: Path, file: h5py.File, heaps: Heaps) -> Iterator[tuple[str, Any]]:
    """Attributes that are strings, lists of strings, or numbers; those of other types are refused."""
    for key in file.attrs:
        name = f"attribute {key}"
        attribute = h5py.h5a.open(file.id, key.encode())
        dtype = attribute.dtype
        if not (dtype.kind in "iufbS" or h5py.check_string_dtype(dtype)):
            raise DataError(path, name, f"got a value of type {dtype}, wanted numbers or strings: {_REWRITE}")
        count = prod(attribute.shape)
        size = heaps.check_attribute(key, count) if dtype.kind == "O" else count * attribute.get_type().get_size()
        if size > MAX_STRING_BYTES:
            raise DataError(path, name, f"takes {size:,} bytes, wanted at most {MAX_STRING_BYTES:,}: shorten it")
        yield key, file.attrs[key]


def _filters(dataset: h5py.Dataset) -> list[int]:
    """The filters of a dataset in the order in which they were applied on writing."""
    plist = dataset.id.get_create_plist()
    return [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]


def _applied(filters: list[int], chunk: h5py.h5d.StoreInfo) -> list[int]:
    """Those that one chunk is stored with."""
    return [code for place, code in enumerate(filters) if not chunk.filter_mask >> place & 1]


def _item_bytes(dataset: h5py.Dataset) -> int:
    """Bytes of one value in the file; a string of variable length is stored as length, address and index."""
    if dataset.dtype.kind == "O":
        return REFERENCE.size
    size: int = dataset.id.get_type().get_size()
    return size


def _type_name(dataset: h5py.Dataset) -> str:
    if dataset.shape is None:
        return "null"
    if h5py.check_string_dtype(dataset.dtype):
        return "string"
    if h5py.check_ref_dtype(dataset.dtype):
        return "reference"
    return "variable-length array" if h5py.check_vlen_dtype(dataset.dtype) else str(dataset.dtype)


@contextmanager
def _as_data_error(path: Path, item: str, what: str = _DAMAGED) -> Iterator[None]:
    """HDF5 reports damage by a dozen exception types; here all of them are a DataError that names the file."""
    try:
        yield
    except PermissionError as error:
        raise DataError(path, item, "cannot be read: permission denied, change the file's mode or owner") from error
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, OverflowError, AttributeError, zlib.error) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(path, item, f"{what} ({first_line})") from error
