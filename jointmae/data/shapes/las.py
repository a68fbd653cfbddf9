""".las: airborne and terrestrial scans, versions 1.0 to 1.4 of the format of the ASPRS."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

from jointmae.data.shapes.shape import Shape
from jointmae.errors import DataError

_RECORD_BYTES = (20, 28, 26, 34, 57, 63, 30, 36, 38, 59, 67)  # of the point formats 0 to 10
_VLR_BYTES = 54  # the header of a variable length record
_OLD_HEADER_BYTES, _NEW_HEADER_BYTES = 227, 375  # up to 1.2, and 1.4


class _Header(NamedTuple):
    header_bytes: int
    start: int  # of the points
    num_vlrs: int
    point_format: int
    record_bytes: int
    num_points: int
    scale_and_offset: tuple[float, ...]  # x y z each


def read_las(name: str, data: bytes) -> Shape:
    """The points of a scan, float64: whole numbers in the file, times a scale, plus an offset that may be 10^6 m."""
    header = _read_header(name, data)
    _check_header(name, header, len(data))
    steps = np.ndarray((header.num_points, 3), "<i4", data, header.start, (header.record_bytes, 4))  # [N, 3]
    scale, offset = np.array(header.scale_and_offset).reshape(2, 3)
    with np.errstate(all="ignore"):
        return Shape(steps * scale + offset)


def _read_header(name: str, data: bytes) -> _Header:
    if data[:4] != b"LASF" or len(data) < _OLD_HEADER_BYTES:
        raise DataError(name, "", "does not begin as a LAS file: it is damaged, cut short or of another format")
    major, minor = data[24], data[25]
    if major != 1 or minor > 4:
        raise DataError(name, "", f"got version {major}.{minor}, wanted 1.0 to 1.4: convert it to .las of version 1.4")
    header_bytes, start, num_vlrs, point_format, record_bytes, num_points = struct.unpack_from("<HIIBHI", data, 94)
    if minor == 4:
        if len(data) < _NEW_HEADER_BYTES:
            raise DataError(name, "", "ends within its header: copy it again")
        num_points = struct.unpack_from("<Q", data, 247)[0] or num_points
    numbers = struct.unpack_from("<6d", data, 131)
    return _Header(header_bytes, start, num_vlrs, point_format, record_bytes, num_points, numbers)


def _check_header(name: str, header: _Header, num_bytes: int) -> None:
    """The sizes that the header declares against each other and the file."""
    if header.point_format >= 64:  # the two highest bits mark what LASzip wrote
        raise DataError(name, "", "is compressed (LAZ), which is not read: convert it to an uncompressed .las")
    if header.point_format >= len(_RECORD_BYTES):
        raise DataError(name, "", f"got point format {header.point_format}, wanted 0 to 10: the file is damaged")
    smallest = _RECORD_BYTES[header.point_format]
    if header.record_bytes < smallest:
        got = f"got points of {header.record_bytes} bytes, wanted at least {smallest}"
        raise DataError(name, "", f"{got} in point format {header.point_format}: the file is damaged")
    if header.header_bytes + header.num_vlrs * _VLR_BYTES > header.start or header.header_bytes < _OLD_HEADER_BYTES:
        got = f"a header of {header.header_bytes} bytes and {header.num_vlrs:,} records before byte {header.start:,}"
        raise DataError(name, "", f"declares {got}: the file is damaged")
    needed = header.start + header.num_points * header.record_bytes
    if needed > num_bytes:
        what = f"{header.num_points:,} points need {needed:,} bytes, but the file has {num_bytes:,}"
        raise DataError(name, "", f"{what}: it is damaged or not fully written")
