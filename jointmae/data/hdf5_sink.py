"""A file for HDF5 to write to that never fails: HDF5 does not survive a full disk.

After a write that fails it can neither close its file nor forget it, and ends the process later, in another file's
close. So what the disk does not take is kept in memory, and the error for whoever asks; little comes after it.
"""

from __future__ import annotations

import os
from typing import IO


class Sink:
    """The file object that HDF5's `fileobj` driver wants, over an unbuffered file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._place = 0
        self._kept: list[tuple[int, bytes]] = []  # what the file did not take, and all after it
        self._error: BaseException | None = None

    def check(self) -> None:
        """Raises what a write met, or a signal's handler during one."""
        if self._error is not None:
            raise self._error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As a file does."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size()}[whence]
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        """As a file does."""
        return self._place

    def write(self, data: memoryview) -> int:
        """Takes all of it."""
        whole = bytes(data)
        try:
            if self._error is None:
                _write_all(self._file.fileno(), whole, self._place)
        except BaseException as error:
            self._error = error
        if self._error is not None:
            self._kept.append((self._place, whole))
        self._place += len(whole)
        return len(whole)

    def readinto(self, buffer: memoryview) -> int:
        """Fills all of it, with zeros where nothing was written."""
        view = memoryview(buffer).cast("B")
        found = os.pread(self._file.fileno(), len(view), self._place)
        view[:] = found + bytes(len(view) - len(found))
        for place, data in self._kept:
            first, last = max(place, self._place), min(place + len(data), self._place + len(view))
            if first < last:
                view[first - self._place : last - self._place] = data[first - place : last - place]
        self._place += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """As a file does."""
        wanted = self._place if size is None else size
        try:
            os.ftruncate(self._file.fileno(), wanted)
        except OSError as error:
            self._error = self._error or error
        return wanted

    def flush(self) -> None:
        """Nothing is held back."""

    def _size(self) -> int:
        return max([os.fstat(self._file.fileno()).st_size, *(place + len(data) for place, data in self._kept)])


def _write_all(handle: int, data: bytes, place: int) -> None:
    rest = memoryview(data)
    while rest:
        count = os.pwrite(handle, rest, place)
        rest, place = rest[count:], place + count
