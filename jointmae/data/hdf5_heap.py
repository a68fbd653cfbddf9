"""Check the global heaps of an HDF5 file, where strings of variable length are kept, before HDF5 reads them.

HDF5 2.0 never returns from a heap in which a free object has size 0 (HDFGroup/hdf5 issue 1707; one changed byte is
enough), and many strings may point to one large object, so that a small file asks for much memory. Neither shows in its
API. The layout is section III.E of the HDF5 File Format Specification: "GCOL", version, the size of the collection,
then objects of a 16-byte header and their data, padded to 8.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from jointmae.errors import DataError

_SIGNATURE = b"GCOL\x01"
_HEADER = struct.Struct("<HH4xQ")  # index (0 = free space), reference count, size
_SMALLEST = 4096  # HDF5 refuses smaller collections
_DAMAGED = "its strings are damaged: copy the file again"


def longest_string(path: Path) -> int:
    """The size in bytes of the largest heap object in a file of 8-byte lengths; 0 without heaps.

    Raises DataError for a heap that is not a chain of objects from its first byte to its last.
    """
    longest = total = 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(_SIGNATURE)
        while start >= 0:
            size = int.from_bytes(data[start + 8 : start + 16], "little")
            if _SMALLEST <= size <= len(data) - start:  # else these are other bytes, or HDF5 refuses them
                total += size
                if total > len(data):
                    raise DataError(path, "", _DAMAGED)
                longest = max(longest, _longest_object(path, data, start + 16, start + size))
            start = data.find(_SIGNATURE, start + 1)
    return longest


def _longest_object(path: Path, data: mmap.mmap, place: int, end: int) -> int:
    """Follow the objects of one collection as HDF5 does; a rest too small for a header is unused."""
    longest = 0
    while place + _HEADER.size <= end:
        index, _, size = _HEADER.unpack_from(data, place)
        place += _HEADER.size + (size + 7) // 8 * 8 if index else size
        if place > end or (index == 0 and size < _HEADER.size):
            raise DataError(path, "", _DAMAGED)
        longest = max(longest, size if index else 0)
    return longest
