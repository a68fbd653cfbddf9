"""Check the global heaps of an HDF5 file, where strings of variable length are kept, before HDF5 reads them.

HDF5 trusts them: it never returns from a heap in which a free object has size 0 (HDFGroup/hdf5 issue 1707; one changed
byte is enough), clears up to 4 GiB for a string before it looks whether there is one so long, and writes an object past
the end of a string that claims to be shorter. None of this shows in its API. The layout is section III.E of the HDF5
File Format Specification: "GCOL", version, the size of the collection, then objects of a 16-byte header and their data,
padded to 8. A string is stored elsewhere as a reference: its length, the address of a collection, the object's index.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from jointmae.errors import DataError

REFERENCE = struct.Struct("<IQI")  # length, address, index; address 0 = no string

_SIGNATURE = b"GCOL\x01"
_OBJECT = struct.Struct("<HH4xQ")  # index (0 = free space), reference count, size
_SMALLEST = 4096  # HDF5 refuses smaller collections
_ATTRIBUTE = struct.Struct("<BxHHH")  # version, bytes of its name with a zero, of its type, of its shape
_DAMAGED = "its strings are damaged: copy the file again"


class Heaps:
    """The strings of variable length in a file of 8-byte addresses that begins at byte `base` of `path`.

    `data` are the byte ranges [start, end) of large datasets, in which no heap is looked for and none may be.
    Raises DataError for a heap that is not a chain of objects from its first byte to its last.
    """

    def __init__(self, path: Path, base: int, data: Sequence[tuple[int, int]]) -> None:
        self._path, self._gaps = path, list(_gaps(data, path.stat().st_size))
        self._sizes: dict[int, dict[int, int]] = {}  # address of a heap: index of an object: its bytes
        total = 0
        with self._mapped() as file:
            for start in self._find(file, _SIGNATURE):
                size = int.from_bytes(file[start + 8 : start + 16], "little")
                if _SMALLEST <= size <= len(file) - start:  # else these are other bytes, or HDF5 refuses them
                    total += size
                    if total > len(file):
                        raise DataError(path, "", _DAMAGED)
                    self._sizes[start - base] = self._objects(file, start + 16, start + size)

    def check(self, item: str, references: bytes) -> int:
        """The bytes of all strings that `references` lead to. Raises DataError unless each leads to one so long."""
        total = 0
        if len(references) % REFERENCE.size:
            raise DataError(self._path, item, _DAMAGED)
        for length, address, index in REFERENCE.iter_unpack(references):
            if address:
                if self._sizes.get(address, {}).get(index) != length:
                    raise DataError(self._path, item, _DAMAGED)
                total += length
        return total

    def check_attribute(self, key: str, num_strings: int) -> int:
        """`check` for the references of an attribute: HDF5 tells no address, so every place that may be it is checked.

        Raises DataError also where there is none.
        """
        totals = []
        with self._mapped() as file:
            for place in self._attributes(file, key.encode() + b"\0"):
                references = file[place : place + num_strings * REFERENCE.size]
                if len(references) == num_strings * REFERENCE.size:
                    totals.append(self.check(f"attribute {key}", references))
        if not totals:
            raise DataError(self._path, f"attribute {key}", _DAMAGED)
        return max(totals)

    def _mapped(self) -> mmap.mmap:
        with self._path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _find(self, file: mmap.mmap, wanted: bytes) -> Iterator[int]:
        """Where `wanted` begins between the data."""
        for begin, end in self._gaps:
            start = file.find(wanted, begin, end)
            while start >= 0:
                yield start
                start = file.find(wanted, start + 1, end)

    def _objects(self, file: mmap.mmap, place: int, end: int) -> dict[int, int]:
        """Follow the objects of one collection as HDF5 does; a rest too small for a header is unused."""
        sizes = {}
        while place + _OBJECT.size <= end:
            index, _, size = _OBJECT.unpack_from(file, place)
            place += _OBJECT.size + _padded(size) if index else size
            if place > end or (index == 0 and size < _OBJECT.size):
                raise DataError(self._path, "", _DAMAGED)
            if index:
                sizes[index] = size
        return sizes

    def _attributes(self, file: mmap.mmap, name: bytes) -> Iterator[int]:
        """Where the values of attributes of this name begin (section IV.A.2.m, versions 1 to 3)."""
        for start in self._find(file, name):
            for version, header_bytes in ((1, 8), (2, 8), (3, 9)):
                if start < header_bytes:
                    continue
                found, *sizes = _ATTRIBUTE.unpack_from(file, start - header_bytes)
                if found == version and sizes[0] == len(name):
                    yield start + sum(map(_padded, sizes) if version == 1 else sizes)


def _padded(size: int) -> int:
    return (size + 7) // 8 * 8


def _gaps(data: Sequence[tuple[int, int]], end: int) -> Iterator[tuple[int, int]]:
    """The ranges of 0..end that lie in none of `data`."""
    place = 0
    for start, stop in sorted(data):
        if start > place:
            yield place, start
        place = max(place, stop)
    yield place, end
