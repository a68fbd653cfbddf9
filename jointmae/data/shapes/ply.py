""".ply: the Stanford polygon format, text or binary, a cloud or a mesh."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointmae.data.shapes.ply_header import Element, Property, read_header
from jointmae.data.shapes.polygons import triangulate
from jointmae.data.shapes.shape import Shape, as_points
from jointmae.errors import DataError

_DAMAGED = "the file is damaged or not fully written"
_CODES = {"i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "f8": "d"}  # NumPy's and struct's
_CORNERS = ("vertex_indices", "vertex_index")
_Lists = tuple[NDArray[np.int64], NDArray[np.int64]]  # lengths, and all the numbers end to end


def read_ply(name: str, data: bytes) -> Shape:
    """The properties x y z of `vertex` in their own type, and the polygons of `face`, where the file has such."""
    header = read_header(name, data)
    elements, tables = header.elements, memoryview(data)[header.end :]
    if header.is_text:
        tables = _numbers(name, data[header.end :]).data.cast("B")
        elements = [_as_float64(element) for element in elements]
    needed = sum(element.num_rows * element.smallest for element in elements)
    if needed > len(tables):
        counts = ", ".join(f"{element.num_rows:,} {element.name}" for element in elements)[:200]
        raise DataError(name, "", f"{counts} need {needed:,} bytes, but {len(tables):,} are there: {_DAMAGED}")
    points, faces, start = None, None, 0
    for declared, element in zip(header.elements, elements, strict=True):
        if element.name == "vertex" and points is None:
            points = _points(name, declared, element, tables, start)
        lists, start = _lists(name, element, tables, start)
        if element.name == "face" and lists is not None and faces is None:
            faces = lists
    if points is None:
        raise DataError(name, "", "has no element called vertex: export it again")
    return Shape(as_points(points), None if faces is None else triangulate(name, *faces, len(points)))


def _numbers(name: str, text: bytes) -> NDArray[np.float64]:
    """All the numbers of a text, which may break its lines anywhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # how NumPy says that it stopped before the end
        try:
            return np.fromstring(text, np.float64, sep=" ")
        except (DeprecationWarning, ValueError) as error:
            raise DataError(name, "", f"holds something that is not a number after its header: {_DAMAGED}") from error


def _as_float64(element: Element) -> Element:
    """The table as if it were binary with 64 bits for every number, which is how a text is held."""
    float64: np.dtype[np.generic] = np.dtype(np.float64)
    wide = [Property(item.name, float64, item.size_dtype and float64) for item in element.properties]
    return element._replace(properties=wide)


def _points(name: str, declared: Element, element: Element, tables: memoryview, start: int) -> NDArray[Any]:
    """Coordinates [N, 3] in the type that the header declares."""
    places = {item.name: i for i, item in enumerate(element.properties)}
    if any(item.size_dtype for item in element.properties) or not {"x", "y", "z"} <= places.keys():
        got = ", ".join(places)[:200] or "none"
        raise DataError(name, "vertex", f"got properties {got}, wanted numbers, x y z among them: export it again")
    if element.num_rows == 0:
        raise DataError(name, "", "holds no points: remove the file")
    xyz = [places[axis] for axis in "xyz"]
    dtype = np.result_type(*(declared.properties[i].dtype for i in xyz))
    points = np.empty((element.num_rows, 3), dtype.newbyteorder("="))
    for column, i in enumerate(xyz):
        offset = start + sum(item.smallest for item in element.properties[:i])
        number = element.properties[i].dtype
        with np.errstate(over="ignore"):  # 1e300 in a text that declares float is infinite
            points[:, column] = np.ndarray((element.num_rows,), number, tables, offset, (element.smallest,))
    return points


def _lists(name: str, element: Element, tables: memoryview, start: int) -> tuple[_Lists | None, int]:
    """The lists of corners of a table, if it has such, and where the table ends."""
    if not any(item.size_dtype for item in element.properties) or element.num_rows == 0:
        return None, start + element.num_rows * element.smallest
    walked = _equal_rows(element, tables, start)
    return walked if walked else _walk(name, element, tables, start)


def _equal_rows(element: Element, tables: memoryview, start: int) -> tuple[_Lists | None, int] | None:
    """The same at once for a table all of whose rows have lists as long as those of the first, else None."""
    offset, lists = start, []
    for item in element.properties:
        size = 1
        if item.size_dtype:
            if offset + item.size_dtype.itemsize > len(tables):
                return None
            size = _size_reader(item.size_dtype)(tables, offset)
            lists.append((item, offset, size))
            offset += item.size_dtype.itemsize
        offset += size * item.dtype.itemsize
        if size < 0 or offset > len(tables):
            return None
    count, step = element.num_rows, offset - start
    if start + count * step > len(tables):
        return None
    corners = None
    for item, place, size in lists:
        assert item.size_dtype is not None
        if (np.ndarray((count,), item.size_dtype, tables, place, (step,)) != size).any():
            return None
        if item.name in _CORNERS:
            first, width = place + item.size_dtype.itemsize, item.dtype.itemsize
            rows = np.ndarray((count, size), item.dtype, tables, first, (step, width))
            corners = np.full(count, size), _as_int64(rows.ravel())
    return corners, start + count * step


def _walk(name: str, element: Element, tables: memoryview, start: int) -> tuple[_Lists | None, int]:
    """The same row by row."""
    steps = [(item, item.size_dtype and _size_reader(item.size_dtype)) for item in element.properties]
    places, sizes, offset, dtype = list[int](), list[int](), start, None
    for row in range(element.num_rows):
        for item, read_size in steps:
            size = 1
            if read_size:
                if offset + item.smallest > len(tables):
                    raise DataError(name, f"{element.name} {row}", f"begins after the end of the file: {_DAMAGED}")
                size = read_size(tables, offset)
                offset += item.smallest
                if item.name in _CORNERS:
                    places.append(offset)
                    sizes.append(size)
                    dtype = item.dtype
            offset += size * item.dtype.itemsize
            if size < 0 or offset > len(tables):
                what = f"has a list of {size:,} numbers, which the file does not hold"
                raise DataError(name, f"{element.name} {row}", f"{what}: {_DAMAGED}")
    if dtype is None:
        return None, offset
    return (np.array(sizes), _gather(tables, np.array(places), np.array(sizes), dtype)), offset


def _size_reader(dtype: np.dtype[np.generic]) -> Callable[[memoryview, int], int]:
    """Reads the length of a list at an offset; -1 for what is no length."""
    code = struct.Struct(("=" if dtype.isnative else "<>"[dtype.str[0] == ">"]) + _CODES[dtype.str[1:]])

    def read(tables: memoryview, offset: int) -> int:
        (size,) = code.unpack_from(tables, offset)
        return int(size) if 0 <= size <= len(tables) and size == int(size) else -1

    return read


def _gather(
    tables: memoryview, places: NDArray[np.int64], sizes: NDArray[np.int64], dtype: np.dtype[np.generic]
) -> NDArray[np.int64]:
    """Lists of `sizes` numbers that begin at `places`, end to end."""
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    first_bytes = np.repeat(places, sizes) + within * dtype.itemsize
    numbers = np.frombuffer(tables, np.uint8)[first_bytes[:, None] + np.arange(dtype.itemsize)]  # [sum, itemsize]
    return _as_int64(numbers.view(dtype).ravel())


def _as_int64(numbers: NDArray[Any]) -> NDArray[np.int64]:
    """Vertex numbers; what is no whole number below 2^53 becomes -1, which is refused as no vertex."""
    if numbers.dtype.kind != "f":
        return numbers.astype(np.int64)
    whole = (np.abs(numbers) < 2**53) & (numbers == np.round(numbers))
    return np.where(whole, numbers, -1).astype(np.int64)
