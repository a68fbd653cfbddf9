"""Zip archives, read in memory and never extracted: what a member claims to be is held against the file first."""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from jointmae.errors import DataError

SUFFIXES = (".zip", ".sh3f")
MAX_DIRECTORY_BYTES = 32 * 2**20  # the list of members, some 250,000 of them, as Python holds all of it
MAX_MEMBER_BYTES = 2**31
MAX_RATIO = 1100  # deflate reaches 1032

_METHODS = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: MAX_RATIO}
_AGAIN = "pack it again with an ordinary zip program"
_DAMAGED = "the archive is damaged, copy it again"


class Archive:
    """A zip file whose list of members has been checked; a context manager."""

    def __init__(self, path: Path) -> None:
        """Reads and checks the list, nothing else.

        Raises DataError for a file that is no zip archive or damaged; for a member whose name is absolute, has "..",
        or comes twice, that is a link, encrypted or compressed by another method than deflate; and for sizes that the
        file cannot hold.
        """
        self.path = path
        with _as_data_error(path, ""):
            self._file = _BoundedReads(path)
            try:
                self._zip = zipfile.ZipFile(self._file)
                self.members = {info.filename: info for info in self._zip.infolist() if not info.is_dir()}
                self._check()
            except BaseException:
                self._file.close()
                raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._zip.close()
        self._file.close()

    def read(self, member: str, max_bytes: int = MAX_MEMBER_BYTES) -> bytes:
        """The content of a member, whole, its checksum checked. Raises DataError."""
        info = self.members.get(member)
        if info is None:
            raise DataError(self.path, member, "is not in the archive: it has changed, begin again")
        if info.file_size > max_bytes:
            raise DataError(self.path, member, f"got {info.file_size:,} bytes, wanted at most {max_bytes:,}: split it")
        with _as_data_error(self.path, member), self._zip.open(info) as file:
            data = file.read(info.file_size)  # no more is inflated, whatever there is; then zipfile checks the sum
            if len(data) != info.file_size:
                what = f"got {len(data):,} bytes, wanted {info.file_size:,} as its list says"
                raise DataError(self.path, member, f"{what}: {_DAMAGED}")
            if zlib.crc32(data) != info.CRC:  # zipfile sums no member that claims to be empty
                raise DataError(self.path, member, f"does not have the checksum of its list: {_DAMAGED}")
            return data

    def _check(self) -> None:
        infos = self._zip.infolist()
        names = set()
        for info in infos:
            if info.filename in names:
                raise DataError(self.path, info.filename, f"is in the archive twice: {_AGAIN}")
            names.add(info.filename)
            _check_member(self.path, info)
        stored = sum(info.compress_size for info in infos)
        if stored > self.path.stat().st_size:
            what = f"its members claim {stored:,} stored bytes, the file has {self.path.stat().st_size:,}"
            raise DataError(self.path, "", f"{what}: {_DAMAGED}")


def _check_member(path: Path, info: zipfile.ZipInfo) -> None:
    name = info.filename
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts or name.startswith(("/", "\\")) or ":" in name.split("/")[0]:
        raise DataError(path, name, f"its name leads out of the archive: {_AGAIN}")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise DataError(path, name, f"is a symbolic link, and links are not followed: {_AGAIN}")
    if info.flag_bits & 1:
        raise DataError(path, name, f"is encrypted: {_AGAIN}, without a password")
    if info.compress_type not in _METHODS:
        raise DataError(path, name, f"got compression method {info.compress_type}, wanted deflate: {_AGAIN}")
    possible = info.compress_size * _METHODS[info.compress_type]
    if info.file_size > possible or info.file_size > MAX_MEMBER_BYTES:
        limits = f"wanted at most {min(possible, MAX_MEMBER_BYTES):,} of {info.compress_size:,} stored"
        raise DataError(path, name, f"claims {info.file_size:,} bytes, {limits}: {_DAMAGED}")


class _BoundedReads(io.FileIO):
    """zipfile takes the list of members in one read, as large as the file says."""

    def read(self, size: int | None = -1, /) -> bytes:
        bounded = MAX_DIRECTORY_BYTES + 1 if size is None or size < 0 else size
        if bounded > MAX_DIRECTORY_BYTES and self._left() > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its list of members has more than {MAX_DIRECTORY_BYTES:,} bytes")
        return super().read(bounded) or b""

    def _left(self) -> int:
        return os.fstat(self.fileno()).st_size - self.tell()


@contextmanager
def _as_data_error(path: Path, item: str) -> Iterator[None]:
    """What zipfile and the system raise for a file that is damaged, missing or no archive, as a DataError."""
    try:
        yield
    except zipfile.BadZipFile as error:
        raise DataError(path, item, f"cannot be read as a zip archive ({error}): {_DAMAGED}") from error
    except (zlib.error, struct.error, EOFError, RuntimeError, ValueError, UnicodeError, OverflowError) as error:
        raise DataError(path, item, f"cannot be read ({error}): {_DAMAGED}") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(path, item, f"cannot be read ({reason}): check the file and its permissions") from error
