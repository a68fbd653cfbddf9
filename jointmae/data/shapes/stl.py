""".stl: triangles without shared vertices, binary or text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jointmae.data.shapes.shape import Shape
from jointmae.data.shapes.text import read_columns
from jointmae.errors import DataError

_HEADER_BYTES, _TRIANGLE_BYTES = 84, 50


def read_stl(name: str, data: bytes) -> Shape:
    """Three vertices a triangle, float32, as they stand in the file; normals and colours are passed over."""
    if data.lstrip()[:5].lower() == b"solid" and not _is_binary(data):
        points = _text_vertices(name, data)
    else:
        points = _binary_vertices(name, data)
    return Shape(points, np.arange(len(points)).reshape(-1, 3))


def _is_binary(data: bytes) -> bool:
    """Some binary files begin with "solid" too: only their length tells."""
    return len(data) == _HEADER_BYTES + _TRIANGLE_BYTES * int.from_bytes(data[80:84], "little")


def _binary_vertices(name: str, data: bytes) -> NDArray[np.float32]:
    if not _is_binary(data):
        num_triangles = int.from_bytes(data[80:84], "little")
        got = f"says {num_triangles:,} triangles of {_TRIANGLE_BYTES} bytes, but the file has {len(data):,} bytes"
        raise DataError(name, "", f"{got}: it is damaged, not fully written, or not an STL file")
    records = np.frombuffer(data, [("normal", "<f4", 3), ("vertices", "<f4", (3, 3)), ("colour", "<u2")], -1, 84)
    vertices: NDArray[np.float32] = records["vertices"].reshape(-1, 3).astype(np.float32)
    return vertices


def _text_vertices(name: str, data: bytes) -> NDArray[np.float32]:
    rows = [row for row in data.splitlines() if row.lstrip()[:6].lower() == b"vertex"]
    if len(rows) % 3:
        what = f"got {len(rows):,} vertices, wanted three for each triangle"
        raise DataError(name, "", f"{what}: the file is damaged or not fully written")
    if not rows:
        raise DataError(name, "", "holds no triangles: remove the file")
    return read_columns(name, "vertices", rows, (1, 2, 3), np.float32)
