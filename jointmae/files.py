"""Writing so that a crash, at any moment, leaves the old file or the new one; and reading no more than is there."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jointmae.errors import DiskError, UsageError


@contextlib.contextmanager
def disk_errors(path: Path, num_bytes: int = 0) -> Iterator[None]:
    """Turns the operating system's refusal to write `path`, and `num_bytes` to it, into a DiskError that names them."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        size = f" ({num_bytes:,} bytes{_free(path)})" if num_bytes > 0 and error.errno == errno.ENOSPC else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "Make room, or choose another place to write to." if full else "Choose another place to write to."
        raise DiskError(f"cannot write {path}{size}: {reason}. {advice}") from error


def _free(path: Path) -> str:
    try:
        return f"; {shutil.disk_usage(path.parent).free:,} free"
    except OSError:  # what cannot be asked is not said
        return ""


def make_folder(path: Path) -> None:
    """Makes `path` and its parents. Raises DiskError if it cannot be made or written to."""
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        probe = path / "writable.tmp"
        probe.touch()
        probe.unlink()


def write_atomically(path: Path, content: bytes | str) -> None:
    """Writes `path` by way of a temporary neighbour, synced to the disk before it takes the name."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(path.name + ".tmp")
    with disk_errors(path, len(data)):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()  # half a file must not fill up what is left of the disk
            raise


def lock_folder(path: Path, busy: str) -> int | None:
    """Keeps other processes out until the handle is closed or this process ends, however it ends.

    Raises UsageError(busy) if another one has it. None where there are no locks: on Windows, on some file systems.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UsageError(busy) from None
    except OSError:
        os.close(handle)
        return None
    return handle


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` durable, where the system can open folders."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def to_json(value: Any) -> str:
    """Indented JSON with a last newline; floats survive exactly. Raises ValueError for NaN and infinity."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
