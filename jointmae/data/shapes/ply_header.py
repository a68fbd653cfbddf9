"""What the header of a .ply declares."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jointmae.errors import DataError

MAX_HEADER_BYTES = 2**20
"""A header has some 20 lines; comments may add to them."""

_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}


class Property(NamedTuple):
    """A number of each row of an element, or a list of numbers with its length before it."""

    name: str
    dtype: np.dtype[np.generic]
    size_dtype: np.dtype[np.generic] | None  # of a list's length

    @property
    def smallest(self) -> int:
        """Bytes of a row that it takes at least."""
        return (self.size_dtype or self.dtype).itemsize


class Element(NamedTuple):
    """A table: vertices, faces, edges or whatever a program has added."""

    name: str
    num_rows: int
    properties: list[Property]

    @property
    def smallest(self) -> int:
        """Bytes of a row at least."""
        return sum(item.smallest for item in self.properties)


class Header(NamedTuple):
    """The tables in the order in which they follow."""

    is_text: bool
    elements: list[Element]
    end: int  # where the tables begin


def read_header(name: str, data: bytes) -> Header:
    """Raises DataError for a line that the format does not have."""
    end = data.find(b"end_header", 0, MAX_HEADER_BYTES)
    if data[:3] != b"ply" or data[3:4] not in (b"\n", b"\r", b" ") or end < 0:
        raise DataError(name, "", "does not begin as a PLY file: it is damaged or of another format")
    order, elements = None, list[Element]()
    for line in data[3:end].decode("latin-1").splitlines():
        words = line.split()
        if words[:1] == ["format"] and len(words) > 1 and words[1] in _ORDERS:
            order = _ORDERS[words[1]]
        elif words[:1] == ["element"] and len(words) == 3 and words[2].isdecimal() and len(words[2]) < 19:
            elements.append(Element(words[1], int(words[2]), []))
        elif words[:1] == ["property"] and elements and order is not None:
            elements[-1].properties.append(_property(name, words, order))
        elif words and words[0] not in ("comment", "obj_info"):
            raise DataError(name, "header", f"got {line[:80]!r}: the file is damaged or not a PLY file")
    if order is None:
        raise DataError(name, "header", "does not say its format: the file is damaged")
    return Header(order == "", elements, _end_of_line(data, end))


def _property(name: str, words: list[str], order: str) -> Property:
    is_list = words[1:2] == ["list"]
    types = [_TYPES.get(word) for word in words[2 if is_list else 1 : -1]]
    if len(types) != (2 if is_list else 1) or None in types or (is_list and types[0] in ("f4", "f8")):
        raise DataError(name, "header", f"got {' '.join(words)[:80]!r}, wanted a number or a list: export it again")
    dtypes = [np.dtype(f"{order}{code}") for code in types]
    return Property(words[-1], dtypes[-1], dtypes[0] if is_list else None)


def _end_of_line(data: bytes, end: int) -> int:
    """The tables begin after the line, which ends as the first one does: a table may begin with a newline's byte."""
    end += len(b"end_header")
    if data[3:5] == b"\r\n":
        return end + 2
    if data[3:4] == b"\r":
        return end + 1
    return data.find(b"\n", end) % (len(data) + 1) + 1  # some programs put a space before the newline
