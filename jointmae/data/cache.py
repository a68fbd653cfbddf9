"""Decoded splits on disk, memory-mapped: a set of 57,448 clouds opens in a second, and processes share its memory.

An entry is a folder `<title>-<split>-<key>` below `$JOINTMAE_CACHE` (`~/.cache/jointmae` without it; "off" for none):
points.npy, labels.npy, parts.npy, meta.json. The key is a sum over the names, sizes and times of the files that the
split was read from; checksums of every 16 MiB are verified whenever an entry is opened, and one that is damaged is made
anew. Deleting an entry, or all of them, loses nothing but the time to decode.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointmae.data.gather import SplitArrays
from jointmae.data.layouts.layout import Layout
from jointmae.errors import DataError

MANY_FILES = 64  # sets of more files, or of more bytes, are kept
MANY_BYTES = 256 * 2**20
_FORMAT = 1  # of an entry; part of its key
_BLOCK = 16 * 2**20


@dataclass(frozen=True, eq=False)
class Entry:
    """Where a split's arrays are, or would be."""

    folder: Path

    def open(self) -> tuple[SplitArrays, str] | None:
        """The arrays, mapped, and the sum over the set's content; None where there is no entry or it is damaged."""
        try:
            text = (self.folder / "meta.json").read_bytes()
            meta = json.loads(text[:-64])
            if hashlib.sha256(text[:-64]).hexdigest().encode() != text[-64:]:
                raise ValueError("meta.json does not match its checksum")
            arrays = {name: _verified(self.folder / f"{name}.npy", sums) for name, sums in meta["sums"].items()}
            return _split_arrays(arrays, meta), meta["sha256"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"cache: {self.folder} is damaged ({error}); the data are read again", flush=True)
            return None

    def store(self, arrays: SplitArrays, sha256: str) -> None:
        """Writes the entry, or warns where the disk does not let it."""
        try:
            self._write(arrays, sha256)
        except OSError as error:
            what = f"jointmae: the decoded set cannot be kept in {self.folder.parent} ({error.strerror})."
            warnings.warn(f"{what} Make room there, or set JOINTMAE_CACHE.", RuntimeWarning, stacklevel=2)

    def _write(self, arrays: SplitArrays, sha256: str) -> None:
        """Under a temporary name, which it then changes: a crash leaves no entry, two writers leave one."""
        temporary = Path(tempfile.mkdtemp(prefix=self.folder.name + ".", suffix=".tmp", dir=self.folder.parent))
        try:
            kept: dict[str, NDArray[Any]] = {"points": arrays.points, "labels": arrays.labels}
            if arrays.parts is not None:
                kept["parts"] = arrays.parts
            for name, values in kept.items():
                np.save(temporary / f"{name}.npy", values, allow_pickle=False)
            meta = {
                "sums": {name: _sums(temporary / f"{name}.npy") for name in kept},
                "names": arrays.names,
                "bad_files": arrays.bad_files,
                "num_dropped": arrays.num_dropped,
                "sha256": sha256,
            }
            text = json.dumps(meta).encode()
            (temporary / "meta.json").write_bytes(text + hashlib.sha256(text).hexdigest().encode())
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # another process was faster
                os.rename(temporary, self.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def entry_of(layout: Layout, split: str, options: dict[str, Any]) -> Entry | None:
    """The entry for a split read with these options; None for small sets and where there is no place for entries."""
    files = layout.files()
    stats = [(os.path.abspath(file), info.st_size, info.st_mtime_ns) for file in files for info in [_stat(file)]]
    if len(files) < MANY_FILES and sum(size for _, size, _ in stats) < MANY_BYTES:
        return None
    place = folder()
    if place is None:
        return None
    described = json.dumps([_FORMAT, layout.kind, layout.variant, split, options, stats])
    key = hashlib.sha256(described.encode()).hexdigest()[:16]
    return Entry(place / f"{layout.path.resolve().stem}-{split}-{key}")


def folder() -> Path | None:
    """Where entries are kept, made if need be; None if nothing is to be kept or nothing can be written there."""
    chosen = os.environ.get("JOINTMAE_CACHE", "")
    if chosen == "off":
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = Path(chosen) if chosen else home / "jointmae"
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return place
    except OSError as error:
        what = f"jointmae: nothing can be kept in {place} ({error.strerror}); sets are decoded each time."
        warnings.warn(f"{what} Choose another place by JOINTMAE_CACHE, or off.", RuntimeWarning, stacklevel=2)
        return None


def entries(place: Path) -> list[Path]:
    """The folders of all entries in a place, also those that a crash left half written."""
    names = re.compile(r".+-[0-9a-f]{16}(\..+\.tmp)?")
    return sorted(path for path in place.iterdir() if names.fullmatch(path.name) and path.is_dir())


def remove(entry: Path) -> None:
    """Removes one. Raises OSError if it cannot be."""
    shutil.rmtree(entry)


def _stat(file: Path) -> os.stat_result:
    try:
        return file.stat()
    except OSError as error:
        raise DataError(file, "", f"cannot be read ({error.strerror}): check the file and its permissions") from error


def _sums(file: Path) -> list[int]:
    """CRC-32 of every 16 MiB of a file, two at a time: more would wait for the memory."""
    size = file.stat().st_size
    with file.open("rb") as opened, ThreadPoolExecutor(2) as threads:

        def one(start: int) -> int:
            return zlib.crc32(os.pread(opened.fileno(), _BLOCK, start))

        return list(threads.map(one, range(0, size, _BLOCK)))


def _verified(file: Path, sums: list[int]) -> NDArray[Any]:
    """An array of the entry, mapped privately: writing to it changes no file. Raises ValueError if it is damaged."""
    if _sums(file) != sums:
        raise ValueError(f"{file.name} does not match its checksums")
    values: NDArray[Any] = np.load(file, mmap_mode="c", allow_pickle=False)
    return values


def _split_arrays(arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> SplitArrays:
    return SplitArrays(
        points=arrays["points"],
        labels=np.array(arrays["labels"]),
        names=tuple(meta["names"]),
        parts=arrays.get("parts"),
        bad_files=tuple(meta["bad_files"]),
        num_dropped=meta["num_dropped"],
    )
