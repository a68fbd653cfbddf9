"""A process that reads files of one cloud or mesh, one after the other, for `jointmae.data.reading`.

It runs as `python -m jointmae.data.worker` and ends when its standard input does. A request is a line of JSON; the
answer is frames: a length of 4 bytes, a header of JSON, and after the header that has a `shape` the numbers. First
{"num_bytes"}, from which the parent knows how long the rest may take, then {"shape", "dtype", "is_mesh"} or {"item",
"what"}, which is what a DataError says. Nothing is ever pickled.

Whatever a file does to its reader stays in here: memory has a limit, and so has time.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import stat
import struct
import sys
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from jointmae.data.sample import sample_surface
from jointmae.data.shapes.limits import MAX_FILE_BYTES
from jointmae.data.shapes.read import read_shape
from jointmae.errors import DataError

LENGTH = struct.Struct("<I")
BASE_SECONDS, BYTES_PER_SECOND = 10, 4_000_000
"""Time for a file; honest ones take a tenth of it on a slow disk."""

_BASE_MEMORY, _MEMORY_PER_BYTE, _MEMORY_PER_SAMPLE = 2**30, 20, 400
"""Memory for a file beyond what the process has: the bytes, the numbers of a text of "0 0 0" rows (4 times those, as
lines 8 times) and the temporaries of triangles and samples."""

_COPY = "copy the file again"
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError)


def main() -> None:
    """Answers the requests of standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent sees to this one
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get among the answers
    with contextlib.suppress(BrokenPipeError):  # the parent is gone
        _send(answers, {"ready": True})
        for line in sys.stdin.buffer:
            _answer(json.loads(line), answers)


def seconds_for(num_bytes: int) -> float:
    """How long a file of that size may take."""
    return BASE_SECONDS + num_bytes / BYTES_PER_SECOND


def _answer(request: dict[str, Any], answers: BinaryIO) -> None:
    try:
        points, is_mesh = _read(request, answers)
        _send(answers, {"shape": points.shape, "dtype": points.dtype.str, "is_mesh": is_mesh}, points.data.cast("B"))
    except DataError as error:
        _send(answers, {"item": error.item, "what": error.what})
    except MemoryError:
        _send(answers, {"item": "", "what": f"needs far more memory than a file of its size should: {_COPY}"})
    except _ZIP_ERRORS as error:
        _send(answers, {"item": "", "what": f"cannot be read from its archive ({str(error)[:200]}): {_COPY}"})
    except OSError as error:
        reason = error.strerror or str(error)
        _send(answers, {"item": "", "what": f"cannot be read ({reason}): see to its place, its mode or the disk"})
    except Exception as error:  # a fault of a reader; the message names the file, and the next file is read
        reason = f"{type(error).__name__}: {error}"[:300]
        _send(answers, {"item": "", "what": f"cannot be read ({reason}): {_COPY}, or report this"})
    finally:
        signal.alarm(0)


def _read(request: dict[str, Any], answers: BinaryIO) -> tuple[NDArray[Any], bool]:
    """The points [N, 3], and whether they are those of a mesh's surface."""
    _limit_memory(0)
    stream, num_bytes = _open(request)
    with stream:
        _send(answers, {"num_bytes": num_bytes})
        # The parent kills a process that takes too long; this is for one that has no parent any more.
        signal.alarm(int(seconds_for(num_bytes)) + BASE_SECONDS)
        _limit_memory(_MEMORY_PER_BYTE * num_bytes + _MEMORY_PER_SAMPLE * request["num_points"])
        data = stream.read(num_bytes + 1)  # of an archive, no more is inflated than declared, and its sum must be right
    if len(data) != num_bytes:
        raise DataError("", "", f"has {num_bytes:,} bytes, of which {len(data):,} were read: is it being written?")
    shape = read_shape(request["member"] or request["path"], data)
    if shape.faces is None:
        return np.ascontiguousarray(shape.points), False
    if request["num_points"] < 1:
        raise DataError("", "", "is a mesh, and no number of points was asked for: say how many to sample")
    try:
        return sample_surface(shape, request["num_points"], request["seed"]), True
    except ValueError as error:
        raise DataError("", "", str(error)) from error


def _open(request: dict[str, Any]) -> tuple[IO[bytes], int]:
    """A file, or a member of an archive, which is never extracted to the disk; and how many bytes it has."""
    path, member = Path(request["path"]), request["member"]
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DataError(path, "", "is not a file: give the path of one")
    if member:
        return _open_member(path, member, status.st_mtime_ns)
    _check_size(path, member, status.st_size)
    return path.open("rb"), status.st_size


def _open_member(path: Path, member: str, changed: int) -> tuple[IO[bytes], int]:
    try:
        archive = _open_archive(path, changed)
        info = archive.getinfo(member)
    except KeyError as error:
        raise DataError(path, member, "is not in the archive: look at the names in it") from error
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(path, member, "is encrypted or compressed by an unusual method: zip it again")
    _check_size(path, member, info.file_size)
    return archive.open(info), info.file_size


def _check_size(path: Path, member: str, num_bytes: int) -> None:
    if num_bytes > MAX_FILE_BYTES:
        raise DataError(path, member, f"got {num_bytes:,} bytes, wanted at most {MAX_FILE_BYTES:,}: split the file")


@lru_cache(maxsize=1)
def _open_archive(path: Path, changed: int) -> zipfile.ZipFile:
    """The archive of the last request stays open: its list of names may have 50,000 entries."""
    return zipfile.ZipFile(path)


def _limit_memory(more_bytes: int) -> None:
    """Lets the process grow by 1 GiB and `more_bytes`, where the system can be asked; macOS refuses, and goes without.

    RLIMIT_AS counts addresses, of which NumPy's threads reserve many, hence a limit above what there is now.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = pages * resource.getpagesize() + _BASE_MEMORY + more_bytes
        soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    except (OSError, ValueError):
        return


def _send(answers: BinaryIO, header: dict[str, Any], numbers: bytes | memoryview = b"") -> None:
    text = json.dumps(header).encode()
    answers.write(LENGTH.pack(len(text)) + text)
    answers.write(numbers)
    answers.flush()


if __name__ == "__main__":
    main()
