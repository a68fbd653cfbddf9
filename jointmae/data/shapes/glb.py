""".glb: glTF 2.0 in one file; the meshes of its scene, each where its node puts it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointmae.data.shapes.glb_buffers import read_accessor, the_item
from jointmae.data.shapes.glb_nodes import placed_meshes
from jointmae.data.shapes.shape import Shape, as_points
from jointmae.errors import DataError

MAX_JSON_BYTES = 2**26
"""The description of a scene; Python's objects for it take some ten times as much."""

MAX_ADDED_NUMBERS = 10_000_000
"""Points and corners that a scene may have beyond one for each byte: a few lines may show one mesh a million times."""

_POINTS, _TRIANGLES, _STRIP, _FAN = 0, 4, 5, 6
_HARMLESS = ("KHR_mesh_quantization", "KHR_materials_", "KHR_texture_", "KHR_lights_", "EXT_texture_")
_DAMAGED = "the file is damaged, copy or export it again"
_WRONG = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)


def read_glb(name: str, data: bytes) -> Shape:
    """Vertices of all triangles, strips and fans, or of all points where there are none; lines are passed over.

    float32 where no node moves a mesh, else float64. Materials, images, skins and animations are passed over.
    """
    text, buffer = _chunks(name, data)
    try:
        scene = json.loads(bytes(text))
        _check_extensions(name, scene)
        return _Scene(name, scene, buffer).shape()
    except _WRONG as error:  # what a wrong type or place in the description leads to
        reason = str(error)[:100] or type(error).__name__
        raise DataError(name, "", f"does not describe a scene as glTF 2.0 does ({reason}): {_DAMAGED}") from error


def _chunks(name: str, data: bytes) -> tuple[memoryview, memoryview]:
    """The description, and the bytes that it speaks of."""
    if data[:4] != b"glTF" or data[4:8] != b"\x02\0\0\0":
        raise DataError(name, "", "does not begin as glTF 2.0: export it again as .glb of this version")
    there = memoryview(data)
    chunks: dict[bytes, memoryview] = {}
    offset = 12
    while offset + 8 <= len(data):
        length, kind = int.from_bytes(data[offset : offset + 4], "little"), data[offset + 4 : offset + 8]
        if offset + 8 + length > len(data):
            what = f"declares a part of {length:,} bytes at byte {offset:,}, but the file has {len(data):,}"
            raise DataError(name, "", f"{what}: it is damaged or not fully written")
        chunks.setdefault(kind, there[offset + 8 : offset + 8 + length])
        offset += 8 + length
    text = chunks.get(b"JSON", there[:0])
    if not 0 < len(text) <= MAX_JSON_BYTES:
        got = f"got a description of {len(text):,} bytes, wanted 1 to {MAX_JSON_BYTES:,}"
        raise DataError(name, "", f"{got}: simplify the scene, or export it again")
    return text, chunks.get(b"BIN\0", there[:0])


def _check_extensions(name: str, scene: dict[str, Any]) -> None:
    for extension in scene.get("extensionsRequired", []):
        if not str(extension).startswith(_HARMLESS):
            what = f"needs the extension {str(extension)[:60]}, which is not read: export it without compression"
            raise DataError(name, "", what)


class _Scene:
    """A description and its bytes. Methods raise what Python does where the description is not one of a scene."""

    def __init__(self, name: str, scene: dict[str, Any], buffer: memoryview) -> None:
        self.name, self.scene, self.buffer = name, scene, buffer
        self.numbers_left = len(buffer) + MAX_ADDED_NUMBERS

    def shape(self) -> Shape:
        """All that the scene shows, end to end."""
        placed = placed_meshes(self.name, self.scene)
        meshes = {index: self._mesh(index) for index, _ in placed}
        if any(mesh.faces is not None for mesh in meshes.values()):
            placed = [(index, transform) for index, transform in placed if meshes[index].faces is not None]
        parts = []
        for index, transform in placed:
            self._spend(meshes[index])
            parts.append(Shape(_move(meshes[index].points, transform), meshes[index].faces))
        shape = _join(parts)
        if len(shape.points) == 0:
            raise DataError(self.name, "", "shows neither triangles nor points: is it a scene of lines, or empty?")
        return shape

    def _mesh(self, index: int) -> Shape:
        """The triangles of a mesh, or its points where it has none; nothing for lines."""
        shapes = []
        for i, primitive in enumerate(the_item(self.scene, "meshes", index)["primitives"]):
            if primitive.get("mode", _TRIANGLES) in (_POINTS, _TRIANGLES, _STRIP, _FAN):
                shapes.append(self._primitive(f"mesh {index}, part {i}", primitive))
                self._spend(shapes[-1])
        return _join([shape for shape in shapes if shape.faces is not None] or shapes)

    def _spend(self, shape: Shape) -> None:
        self.numbers_left -= len(shape.points) + (0 if shape.faces is None else shape.faces.size)
        if self.numbers_left < 0:
            what = "shows the same bytes again and again, more often than memory may hold: simplify the scene"
            raise DataError(self.name, "", what)

    def _primitive(self, item: str, primitive: dict[str, Any]) -> Shape:
        position = primitive["attributes"]["POSITION"]
        points = as_points(read_accessor(self.name, item, self.scene, self.buffer, position, "VEC3"))  # [N, 3]
        mode = primitive.get("mode", _TRIANGLES)
        if mode == _POINTS:
            return Shape(points)
        corners = np.arange(len(points))
        if "indices" in primitive:
            rows = read_accessor(self.name, item, self.scene, self.buffer, primitive["indices"], "SCALAR")
            corners = rows.ravel().astype(np.int64)
        if len(corners) and corners.max() >= len(points):
            got = f"got vertex {corners.max()}, wanted 0 to {len(points) - 1}"
            raise DataError(self.name, item, f"{got}: {_DAMAGED}")
        if mode == _TRIANGLES and len(corners) % 3:
            got = f"got {len(corners):,} corners, wanted three for each triangle"
            raise DataError(self.name, item, f"{got}: {_DAMAGED}")
        return Shape(points, _triangles(corners, mode))


def _triangles(corners: NDArray[np.int64], mode: int) -> NDArray[np.int64]:
    if mode == _TRIANGLES:
        return corners.reshape(-1, 3)
    if mode == _FAN:
        return np.stack([np.broadcast_to(corners[:1], len(corners[2:])), corners[1:-1], corners[2:]], axis=1)
    faces = np.stack([corners[:-2], corners[1:-1], corners[2:]], axis=1)
    faces[1::2] = faces[1::2, ::-1]  # every other triangle of a strip is turned
    return faces


def _join(shapes: list[Shape]) -> Shape:
    """Shapes end to end."""
    if not shapes:
        return Shape(np.empty((0, 3), np.float32))
    starts = np.cumsum([0, *(len(shape.points) for shape in shapes)])
    faces = [shape.faces + start for shape, start in zip(shapes, starts, strict=False) if shape.faces is not None]
    points = as_points(np.concatenate([shape.points for shape in shapes]))
    return Shape(points, np.concatenate(faces) if faces else None)


def _move(points: NDArray[Any], transform: NDArray[np.float64]) -> NDArray[Any]:
    if np.array_equal(transform, np.eye(4)):
        return points
    with np.errstate(all="ignore"):
        moved: NDArray[np.float64] = points.astype(np.float64) @ transform[:3, :3].T + transform[:3, 3]
        return moved
