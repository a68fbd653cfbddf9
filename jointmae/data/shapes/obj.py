""".obj: Wavefront's text format, of which only vertices and faces are read; `mtllib` opens nothing."""

from __future__ import annotations

import re

from jointmae.data.shapes.polygons import triangulate_lists
from jointmae.data.shapes.shape import Shape
from jointmae.data.shapes.text import read_columns
from jointmae.errors import DataError

_VERTEX = (b"v ", b"v\t")
_FACE = (b"f ", b"f\t")


def read_obj(name: str, data: bytes) -> Shape:
    """All vertices, float64, and the polygons of all objects and groups; vertices alone are a cloud.

    A negative index counts back from the last vertex above the face, as the format says.
    """
    if b"\\" in data:
        data = re.sub(rb"\\[ \t]*\r?\n", b" ", data)  # a row that goes on in the next
    vertices: list[bytes] = []
    polygons: list[list[int]] = []
    for row in data.splitlines():
        row = row.lstrip()
        if row.startswith(_VERTEX):
            vertices.append(row)
        elif row.startswith(_FACE):
            polygons.append([_corner(name, len(polygons), word, len(vertices)) for word in _words(row)])
    if not vertices:
        raise DataError(name, "", "holds no vertices: is it an OBJ file?")
    points = read_columns(name, "vertices", vertices, (1, 2, 3))
    return Shape(points, triangulate_lists(name, polygons, len(points)) if polygons else None)


def _words(row: bytes) -> list[bytes]:
    return row.split(b"#", 1)[0].split()[1:]


def _corner(name: str, face: int, word: bytes, num_above: int) -> int:
    """The place of a vertex from "7", "7/1", "7//3", "-1/-1/-1"."""
    try:
        index = int(word.split(b"/", 1)[0])
    except ValueError:
        index = 0
    place = index - 1 if index > 0 else num_above + index
    if index == 0 or place < 0:
        wanted = f"wanted a vertex from 1, or from -1 to -{num_above} for those above"
        raise DataError(name, f"face {face}", f"got {word[:40]!r}, {wanted}: the file is damaged, export it again")
    return place
