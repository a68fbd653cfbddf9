""".npy and .npz: NumPy's arrays, never its pickles."""

from __future__ import annotations

import ast
import io
import re
import zipfile
import zlib
from math import prod
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jointmae.data.shapes.limits import MAX_FILE_BYTES
from jointmae.data.shapes.shape import Shape, as_points
from jointmae.errors import DataError

MAX_COLUMNS = 64
"""Coordinates, normals, colours and features; a wider array is more likely [3, N] than a cloud of few points."""

MAX_MEMBERS = 10_000
"""Arrays of one .npz, which is one cloud here."""

MAX_HEADER_BYTES = 1000
"""A header of plain numbers has 118 bytes, however large the array."""

_DTYPE = re.compile(r"[<>|=]?(f[248]|[iu][1248])")
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, NotImplementedError)
_SAVE = "save it as numbers [N, 3] with numpy.save"


class _Header(NamedTuple):
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    fortran: bool


def read_npy(name: str, data: bytes) -> Shape:
    """An array [N, 3] or wider, whose first three columns are x y z; floats and integers of every width."""
    stream = io.BytesIO(data)
    header = _read_header(name, "", stream)
    num_bytes = _check_size(name, "", header, len(data) - stream.tell())
    array = np.frombuffer(data, header.dtype, num_bytes // header.dtype.itemsize, stream.tell())
    return Shape(as_points(_first_columns(array, header)))


def read_npz(name: str, data: bytes) -> Shape:
    """The array `points` of an archive, or the only one that it has."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            info = _member(name, archive)
            with archive.open(info) as stream:
                header = _read_header(name, info.filename, stream)
                num_bytes = _check_size(name, info.filename, header, info.file_size - stream.tell())
                array = np.frombuffer(stream.read(num_bytes), header.dtype)
    except _ZIP_ERRORS as error:
        raise DataError(name, "", f"is not a sound .npz archive ({error}): copy it again") from error
    if array.nbytes != num_bytes:
        raise DataError(name, info.filename, "ends before its last number: the file is damaged, copy it again")
    return Shape(as_points(_first_columns(array, header)))


def _member(name: str, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """Which member holds the points; its size is bounded by the bytes of which it is made."""
    members = {info.filename: info for info in archive.infolist()[:MAX_MEMBERS]}
    if "points.npy" not in members and len(members) != 1:
        found = ", ".join(list(members)[:10])[:200] or "none"
        raise DataError(name, "", f'got arrays {found}, wanted one called "points": save it under this name')
    info = members.get("points.npy") or next(iter(members.values()))
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(name, info.filename, "is encrypted or not compressed as NumPy does: save it with numpy.savez")
    if info.file_size > MAX_FILE_BYTES:
        got = f"got {info.file_size:,} bytes, wanted at most {MAX_FILE_BYTES:,}"
        raise DataError(name, info.filename, f"{got}: split the cloud")
    return info


def _read_header(name: str, item: str, stream: IO[bytes]) -> _Header:
    """The type and shape that an array declares, from a literal that is not evaluated as code."""
    start = stream.read(8)
    if start[:6] != b"\x93NUMPY" or start[6:] not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        raise DataError(name, item, f"is not a NumPy array: {_SAVE}")
    length = int.from_bytes(stream.read(2 if start[6] == 1 else 4), "little")
    if length > MAX_HEADER_BYTES:
        raise DataError(name, item, f"got a header of {length:,} bytes, wanted at most {MAX_HEADER_BYTES:,}: {_SAVE}")
    text = stream.read(length).decode("latin-1").strip()
    try:
        fields = ast.literal_eval(text)
        descr, shape, fortran = fields["descr"], fields["shape"], fields["fortran_order"]
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise DataError(name, item, f"got a header that is damaged or not of a plain array: {_SAVE}") from error
    if isinstance(descr, str) and "O" in descr:
        raise DataError(name, item, f"holds Python objects, which can run programs when read: {_SAVE}")
    if not isinstance(descr, str) or not _DTYPE.fullmatch(descr):
        raise DataError(name, item, f"got values of type {str(descr)[:80]}, wanted floats or integers: {_SAVE}")
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise DataError(name, item, f"got shape {str(shape)[:80]}, wanted [N, 3]: {_SAVE}")
    return _Header(np.dtype(descr), shape, bool(fortran))


def _check_size(name: str, item: str, header: _Header, there: int) -> int:
    """The bytes of an array, which is one of points and no longer than what is there."""
    shape = list(header.shape)
    if len(shape) != 2 or not 3 <= shape[1] <= MAX_COLUMNS:
        wanted = f"wanted [N, 3] or [N, up to {MAX_COLUMNS}] with x y z first"
        raise DataError(name, item, f"got shape {shape}, {wanted}: convert it")
    num_bytes = prod(shape) * header.dtype.itemsize
    if num_bytes > there:
        what = f"shape {shape} needs {num_bytes:,} bytes, but {there:,} are there"
        raise DataError(name, item, f"{what}: the file is damaged or not fully written")
    return num_bytes


def _first_columns(array: NDArray[np.generic], header: _Header) -> NDArray[np.generic]:
    return array.reshape(header.shape, order="F" if header.fortran else "C")[:, :3]
