"""Arrays of a glTF file, each compared with the bytes that are there before it is read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointmae.errors import DataError

_DTYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC3": 3}
_REWRITE = "export it again as one plain .glb"


def the_item(scene: dict[str, Any], key: str, index: object) -> dict[str, Any]:
    """An entry of one of the lists of a scene. Raises ValueError for a number that is none of its places."""
    items = scene.get(key, [])
    if type(index) is not int or not 0 <= index < len(items) or not isinstance(items[index], dict):
        raise ValueError(f"there is no {str(index)[:20]} in {key}")
    item: dict[str, Any] = items[index]
    return item


def read_accessor(
    name: str, item: str, scene: dict[str, Any], buffer: memoryview, index: object, kind: str
) -> NDArray[Any]:
    """Rows of numbers, [count, 3] for "VEC3" and [count, 1] for "SCALAR".

    Coordinates are float32, or whole numbers, normalised where the file says so; indices are whole numbers.
    """
    accessor = the_item(scene, "accessors", index)
    if "sparse" in accessor or "bufferView" not in accessor:
        raise DataError(name, item, f"has an array without bytes of its own (sparse or empty): {_REWRITE}")
    dtype = np.dtype(_DTYPES[accessor["componentType"]])
    if accessor["type"] != kind or (kind == "SCALAR" and dtype.kind != "u"):
        raise ValueError(f"an array of {str(accessor['type'])[:20]} where {kind} is needed")
    rows = _rows(name, item, scene, buffer, accessor, dtype, _WIDTHS[kind])
    if dtype.kind != "f" and accessor.get("normalized", False):
        rows = np.maximum(rows / np.float32(np.iinfo(dtype).max), -1).astype(np.float32)
    return rows


def _rows(
    name: str,
    item: str,
    scene: dict[str, Any],
    buffer: memoryview,
    accessor: dict[str, Any],
    dtype: np.dtype[Any],
    width: int,
) -> NDArray[Any]:
    """The accessor within its view, the view within the buffer, the buffer within the file."""
    view = the_item(scene, "bufferViews", accessor["bufferView"])
    if view["buffer"] != 0 or "uri" in the_item(scene, "buffers", 0):
        raise DataError(name, item, f"keeps its points in another file, which is not opened: {_REWRITE}")
    row_bytes = width * dtype.itemsize
    count, step = _size(accessor, "count"), _size(view, "byteStride", row_bytes)
    first, length, start = _size(view, "byteOffset", 0), _size(view, "byteLength"), _size(accessor, "byteOffset", 0)
    needed = start + (count - 1) * step + row_bytes if count else 0
    if needed > length or first + length > len(buffer) or step < row_bytes:
        what = f"{count:,} rows of {step:,} bytes from byte {start:,} of {length:,} from byte {first:,}"
        raise DataError(name, item, f"declares {what}, but {len(buffer):,} bytes are there: the file is damaged")
    rows: NDArray[Any] = np.ndarray((count, width), dtype, buffer, first + start, (step, dtype.itemsize))
    return rows


def _size(of: dict[str, Any], key: str, default: int | None = None) -> int:
    size = of[key] if default is None else of.get(key, default)
    if type(size) is not int or not 0 <= size < 2**40:
        raise ValueError(f"{key} is {str(size)[:20]}")
    return size
