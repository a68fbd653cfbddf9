"""From a file's name and bytes to its cloud or mesh: which reader, and what holds for the result of each."""

from __future__ import annotations

from importlib import import_module
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from jointmae.data.shapes.limits import MAX_FILE_BYTES, MAX_POINTS
from jointmae.data.shapes.shape import Shape
from jointmae.errors import DataError

READERS = {
    ".csv": ("text", "read_text"),
    ".glb": ("glb", "read_glb"),
    ".las": ("las", "read_las"),
    ".npy": ("arrays", "read_npy"),
    ".npz": ("arrays", "read_npz"),
    ".obj": ("obj", "read_obj"),
    ".off": ("off", "read_off"),
    ".ply": ("ply", "read_ply"),
    ".pts": ("text", "read_text"),
    ".stl": ("stl", "read_stl"),
    ".txt": ("text", "read_text"),
    ".wrl": ("vrml", "read_vrml"),
    ".xyz": ("text", "read_text"),
}
"""Suffix -> module of this package and function in it, (name, bytes) -> Shape."""

SUFFIXES = tuple(READERS)

_OTHERS = {
    ".laz": "is a compressed LAS file, which is not read: convert it to .las, as with `laszip` or `pdal translate`",
    ".gltf": "keeps its points in other files, which are not opened: export it as one .glb",
}


def read_shape(name: str, data: bytes) -> Shape:
    """The cloud or mesh in `data`, the content of a file called `name`, whose suffix says the format.

    Points are float32 [N, 3], N >= 1, where the file has at most 32 bits for a coordinate, else float64; they may be
    NaN or infinite. Faces are int64 [F, 3], F >= 1, or None; polygons are cut into triangles around their first
    corner. Points that no face uses are kept. Raises DataError naming the file, the item and the remedy.
    """
    suffix = PurePath(name).suffix.lower()
    if suffix not in READERS:
        got = f"got a file of type {suffix or '(none)'}, wanted one of {' '.join(SUFFIXES)}: convert it"
        raise DataError(name, "", _OTHERS.get(suffix, got))
    if not data:
        raise DataError(name, "", "is empty: copy it again")
    if len(data) > MAX_FILE_BYTES:
        raise DataError(name, "", f"got {len(data):,} bytes, wanted at most {MAX_FILE_BYTES:,}: split the file")
    module, function = READERS[suffix]
    shape: Shape = getattr(import_module(f"jointmae.data.shapes.{module}"), function)(name, data)
    _check_count(name, len(shape.points))
    if shape.faces is None or len(shape.faces) == 0:
        return Shape(shape.points)
    _check_faces(name, shape.faces, len(shape.points))
    return shape


def _check_count(name: str, num_points: int) -> None:
    if num_points == 0:
        raise DataError(name, "", "holds no points: remove the file")
    if num_points > MAX_POINTS:
        raise DataError(name, "", f"got {num_points:,} points, wanted at most {MAX_POINTS:,}: split the file")


def _check_faces(name: str, faces: NDArray[np.int64], num_points: int) -> None:
    outside = (faces < 0) | (faces >= num_points)
    if outside.any():
        row, corner = np.argwhere(outside)[0]
        got = f"got vertex {faces[row, corner]}, wanted 0 to {num_points - 1}"
        raise DataError(name, f"triangle {row}", f"{got}: the file is damaged, copy or export it again")
