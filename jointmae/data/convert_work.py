"""OUT.h5.partial: what a conversion has done, so that one that was ended goes on where it was.

plan.json        what is converted, and how: the same plan ends in the same bytes
journal.jsonl    a line for each finished block: its number, its bad files, the SHA-256 of those and of its points
000012.points    the clouds of a block [b, N, 3], bad ones left out
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointmae import __version__
from jointmae.data.layouts.layout import Names
from jointmae.data.tree import Entry
from jointmae.errors import DataError, UsageError
from jointmae.files import disk_errors, lock_folder, make_folder, write_atomically

BLOCK = 128
"""Files a block: what a kill costs at most."""

_OURS = re.compile(r"plan\.json|journal\.jsonl|writable|[0-9]{6,}\.points")


@dataclass(frozen=True)
class Options:
    """What decides the bytes of a converted file, besides the files themselves."""

    num_points: int = 2048
    dtype: str = "float32"
    seed: int = 0
    up_axis: str = "+y"
    source: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Plan:
    """What is converted, and how."""

    entries: tuple[Entry, ...]  # those of a split together
    classes: Names
    options: Options

    @property
    def num_blocks(self) -> int:
        """Blocks of BLOCK files; the last one may have fewer."""
        return -(-len(self.entries) // BLOCK)

    def block(self, number: int) -> tuple[Entry, ...]:
        """The files of a block."""
        return self.entries[number * BLOCK : (number + 1) * BLOCK]

    def to_dict(self) -> dict[str, Any]:
        """As it is written; where a file lies is no part of it."""
        return {
            "version": __version__,
            "options": dict(vars(self.options)),
            "classes": list(self.classes),
            "files": [[entry.name, entry.split, entry.label, entry.size, entry.stamp] for entry in self.entries],
        }


@dataclass(frozen=True)
class FinishedBlock:
    """One line of the journal."""

    sha256: str
    bad: dict[int, str]  # place in the block -> what is wrong with that file


class WorkFolder:
    """The folder, locked for this process; a context manager."""

    def __init__(self, path: Path, plan: Plan, restart: bool) -> None:
        """Raises UsageError if it is of another plan, holds other files or is in use, DiskError if it is not writable.

        `finished` are the blocks that are whole; damaged ones are done again.
        """
        self.path, self._plan = path, plan
        make_folder(path)
        self._lock = lock_folder(path, f"another process is converting into {path}: wait for it")
        try:
            self._require_ours()
            if restart:
                self._clear()
            self._begin()
            self.finished = self._read_journal()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> WorkFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets other processes in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write(self, number: int, points: NDArray[np.floating], bad: dict[int, str]) -> None:
        """Keeps a block: first its points, then the line that says so. Raises DiskError."""
        data = np.ascontiguousarray(points).tobytes()
        write_atomically(self._file(number), data)
        block = FinishedBlock(_sum(data, bad), bad)
        line = json.dumps({"block": number, "bad": list(bad.items()), "sha256": block.sha256})
        journal = self.path / "journal.jsonl"
        with disk_errors(journal, len(line)), journal.open("ab") as file:
            file.write(f"{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        self.finished[number] = block

    def points(self, number: int) -> NDArray[np.floating]:
        """The clouds of a finished block [b, N, 3]. Raises DataError if they are not what was written."""
        data = self._read(number)
        if _sum(data, self.finished[number].bad) != self.finished[number].sha256:
            raise DataError(self._file(number), "", "has changed since it was written: give --restart")
        return np.frombuffer(data, self._plan.options.dtype).reshape(-1, self._plan.options.num_points, 3)

    def remove(self) -> None:
        """The result is written: the folder goes, unless somebody has put something into it."""
        with disk_errors(self.path):
            self._clear()
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def _file(self, number: int) -> Path:
        return self.path / f"{number:06}.points"

    def _read(self, number: int) -> bytes:
        try:
            return self._file(number).read_bytes()
        except OSError:
            return b""  # no block has this sum... unless all its files are bad

    def _require_ours(self) -> None:
        with disk_errors(self.path):
            names = sorted(os.listdir(self.path))
        if strangers := [name for name in names if not _OURS.fullmatch(name.removesuffix(".tmp"))]:
            found = ", ".join(strangers[:3])
            raise UsageError(f"{self.path} holds other files ({found}): move them, or choose another OUT")

    def _clear(self) -> None:
        with disk_errors(self.path):
            for name in sorted(os.listdir(self.path), reverse=True):  # the plan before the journal, last the points
                if _OURS.fullmatch(name.removesuffix(".tmp")):
                    (self.path / name).unlink()

    def _begin(self) -> None:
        """Writes the plan, or compares it with the one that is there."""
        file, mine = self.path / "plan.json", self._plan.to_dict()
        if not file.exists():
            self._clear()  # blocks without a plan are of nobody
            write_atomically(file, json.dumps(mine))
            return
        try:
            theirs = json.loads(file.read_bytes())
            found = list(differences(theirs, mine))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{file} cannot be read ({error}): give --restart to begin again") from error
        if found:
            shown = "\n  ".join(found[:4]) + (f"\n  and {len(found) - 4} more" if len(found) > 4 else "")
            raise UsageError(
                f"{self.path} holds an unfinished conversion of another kind; convert as before, or give --restart to "
                f"begin again.\n  {shown}"
            )

    def _read_journal(self) -> dict[int, FinishedBlock]:
        """The blocks whose files are whole. A line cut short is where a power cut came."""
        journal = self.path / "journal.jsonl"
        content = journal.read_bytes() if journal.exists() else b""
        whole = {}
        for line in content.splitlines():
            try:
                record = json.loads(line)
                number, block = int(record["block"]), FinishedBlock(record["sha256"], dict(record["bad"]))
            except (ValueError, KeyError, TypeError):
                continue
            if self._is_whole(number, block):
                whole[number] = block
        if content and not content.endswith(b"\n"):
            with disk_errors(journal), journal.open("ab") as file:
                file.write(b"\n")
        return whole

    def _is_whole(self, number: int, block: FinishedBlock) -> bool:
        data = self._read(number)
        files, options = len(self._plan.block(number)), self._plan.options
        size = (files - len(block.bad)) * options.num_points * 3 * np.dtype(options.dtype).itemsize
        places = all(isinstance(place, int) and 0 <= place < files for place in block.bad)
        return places and len(data) == size and _sum(data, block.bad) == block.sha256


def _sum(points: bytes, bad: dict[int, str]) -> str:
    return hashlib.sha256(json.dumps(list(bad.items())).encode() + points).hexdigest()


def differences(theirs: dict[str, Any], mine: dict[str, Any]) -> list[str]:
    """What two plans differ in, in words."""
    found = []
    if theirs["version"] != mine["version"]:
        found.append(f"jointmae: {theirs['version']} there, {mine['version']} now")
    for name in sorted({*theirs["options"], *mine["options"]}):
        old, new = theirs["options"].get(name), mine["options"].get(name)
        if old != new:
            found.append(f"--{name.replace('_', '-')}: {old!r} there, {new!r} now")
    old_files, new_files = ({name: rest for name, *rest in plan["files"]} for plan in (theirs, mine))
    changed = [name for name in new_files if name in old_files and new_files[name] != old_files[name]]
    for what, names in (
        ("added", [name for name in new_files if name not in old_files]),
        ("gone", [name for name in old_files if name not in new_files]),
        ("changed", changed),
    ):
        found += [_files_line(what, names)] if names else []
    if theirs["classes"] != mine["classes"] and not found:
        found.append(f"classes: {len(theirs['classes'])} there, {len(mine['classes'])} now")
    if theirs != mine and not found:
        found.append("the order of the files")
    return found


def _files_line(what: str, names: Sequence[str]) -> str:
    return f"{len(names):,} files {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
