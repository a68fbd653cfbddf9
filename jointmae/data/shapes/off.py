""".off: the Object File Format of Geomview, as ModelNet uses it."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from jointmae.data.shapes.polygons import triangulate, triangulate_lists
from jointmae.data.shapes.shape import Shape
from jointmae.data.shapes.text import read_columns
from jointmae.errors import DataError

_KEYWORD = re.compile(rb"\s*(?:ST)?C?N?OFF(?![A-Za-z])", re.IGNORECASE)
_DAMAGED = "the file is damaged or not fully written"


def read_off(name: str, data: bytes) -> Shape:
    """Vertices, float64, and polygons; colours, normals and texture coordinates are passed over.

    The counts may follow the keyword without a space ("OFF490 518 0"), as in files of ModelNet.
    """
    if b"#" in data:
        data = re.sub(rb"#[^\r\n]*", b"", data)
    keyword = _KEYWORD.match(data)
    if not keyword or data[keyword.end() :].lstrip()[:6].upper() == b"BINARY":
        raise DataError(name, "", "does not begin as a text file of type OFF: export it again as text")
    rows = [row for row in data[keyword.end() :].splitlines() if row.strip()]
    num_points, num_faces = _counts(name, rows[0] if rows else b"")
    if num_points + num_faces > len(rows) - 1:
        what = f"says {num_points:,} vertices and {num_faces:,} faces, but {len(rows) - 1:,} rows follow"
        raise DataError(name, "", f"{what}: {_DAMAGED}")
    if num_points == 0:
        return Shape(np.empty((0, 3)))
    points = read_columns(name, "vertices", rows[1 : num_points + 1], (0, 1, 2))
    return Shape(points, _faces(name, rows[num_points + 1 :][:num_faces], num_points))


def _counts(name: str, row: bytes) -> tuple[int, int]:
    words = row.split()
    if len(words) < 2 or not all(word.isdigit() and len(word) < 19 for word in words[:2]):
        raise DataError(name, "", f"got counts {row[:80]!r}, wanted those of vertices and faces: {_DAMAGED}")
    return int(words[0]), int(words[1])


def _faces(name: str, rows: list[bytes], num_points: int) -> NDArray[np.int64] | None:
    """A row is the number of corners, the corners, and possibly a colour."""
    if not rows:
        return None
    if all(row.lstrip().startswith(b"3 ") for row in rows):
        corners = read_columns(name, "faces", rows, (1, 2, 3), np.int64)  # [F, 3]
        return triangulate(name, np.full(len(rows), 3), corners.ravel(), num_points)
    return triangulate_lists(name, [_polygon(name, i, row) for i, row in enumerate(rows)], num_points)


def _polygon(name: str, i: int, row: bytes) -> list[int]:
    try:
        size, *corners = row.split()
        polygon = [int(corner) for corner in corners[: int(size)]]
        if len(polygon) == int(size):
            return polygon
    except ValueError:
        pass  # and so it is no row of a face either
    raise DataError(name, f"face {i}", f"got {row[:80]!r}, wanted the number of corners and the corners: {_DAMAGED}")
