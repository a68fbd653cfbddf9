"""The files of a folder or an archive that hold one cloud or mesh each, with the class and split of each.

CLASS/FILE, SPLIT/CLASS/FILE, CLASS/SPLIT/FILE (as ModelNet has it), SPLIT/FILE or FILE; deeper folders belong to the
name. A folder round all of it (as archives have) is neither.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jointmae.data import archive
from jointmae.data.shapes.read import SUFFIXES
from jointmae.data.splits import SPLITS, Names
from jointmae.errors import DataError
from jointmae.text import counted

MAX_FILES = 1_000_000
MAX_NAME_BYTES = 1024

_NOTES = (".txt", ".csv")  # beside files of other formats these are lists and licences, no clouds


@dataclass(frozen=True)
class Entry:
    """One file of one cloud or mesh."""

    name: str  # its path below the root, with "/"; no two are equal
    path: Path  # what is opened: the file, or the archive it is in
    member: str  # its name in the archive; empty for a file
    split: str  # one of SPLITS; empty where the folders name none
    label: str  # its class; empty where it has none
    size: int  # bytes
    stamp: int  # of a file its mtime in ns, of a member its CRC: another one after a change


@dataclass(frozen=True)
class Tree:
    """What `find_shapes` found."""

    path: Path
    entries: tuple[Entry, ...]  # in natural order of their names
    classes: Names  # in natural order
    passed_over: tuple[tuple[str, int], ...]  # other suffixes, and how many files of each

    @property
    def is_file(self) -> bool:
        """Whether it is of a single file that is no archive."""
        return [entry.path for entry in self.entries if not entry.member] == [self.path]

    def splits(self) -> Names:
        """The splits that the folders name, in the order of SPLITS."""
        found = {entry.split for entry in self.entries}
        return tuple(split for split in SPLITS if split in found)

    def describe_passed_over(self) -> str:
        """One line about the files that were passed over; empty if there are none."""
        count = sum(number for _, number in self.passed_over)
        kinds = ", ".join(suffix or "(no suffix)" for suffix, _ in self.passed_over[:8])
        more = ", ..." if len(self.passed_over) > 8 else ""
        return f"{count:,} files of other kinds were passed over: {kinds}{more}" if count else ""


@dataclass(frozen=True)
class _Found:
    name: str
    size: int
    stamp: int


def find_shapes(path: str | Path) -> Tree:
    """The shapes of a folder, a zip archive or a single file; nothing of them is opened.

    Hidden files are passed over, and so are .txt and .csv beside files of other formats. Raises DataError for a path
    that is not there or holds no shape, for links that lead out of the folder or to folders, for archives as
    `archive.Archive` does, for names that are not UTF-8, and for shapes inside and outside of splits.
    """
    path = Path(path)
    is_archive = os.path.isfile(path) and path.suffix.lower() in archive.SUFFIXES
    if not os.path.exists(path):
        raise DataError(path, "", "does not exist: give the path of a folder or a .zip archive")
    if os.path.isfile(path) and not is_archive:
        return _single(path)
    found, passed_over = _shapes_among(_members(path) if is_archive else _files(path))
    if not found:
        kinds = " ".join(SUFFIXES)
        files = counted(sum(passed_over.values()), "file")
        raise DataError(path, "", f"got no shape among {files}, wanted one of {kinds}")
    for item in found:
        _check_name(path, item.name)
    found.sort(key=lambda item: natural_key(item.name))
    places = place_names([item.name for item in found])
    entries = tuple(
        Entry(item.name, *((path, item.name) if is_archive else (path / item.name, "")), *place, item.size, item.stamp)
        for item, place in zip(found, places, strict=True)
    )
    _check_splits(path, entries)
    kinds_passed = sorted(passed_over.items(), key=lambda kind: (-kind[1], kind[0]))
    return Tree(path, entries, classes_of(entries), tuple(kinds_passed))


def classes_of(entries: Sequence[Entry]) -> Names:
    """The classes of some entries in natural order."""
    return tuple(sorted({entry.label for entry in entries} - {""}, key=natural_key))


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts "chair_2" before "chair_10", in every locale alike; different names have different keys."""
    digits = [(word.lstrip("0"), word) for word in re.split(r"([0-9]+)", name)]
    key = [(0, 0, word) if i % 2 == 0 else (1, len(short), short) for i, (short, word) in enumerate(digits)]
    return [*key, (0, 0, name)]


def place_names(names: Sequence[str]) -> list[tuple[str, str]]:
    """The split and the class of every file, "" for none, from their paths below the root."""
    folders = [list(PurePosixPath(name).parts[:-1]) for name in names]
    while _is_wrapped(folders):
        folders = [parts[1:] for parts in folders]
    return [_place(parts) for parts in folders]


def _is_wrapped(folders: list[list[str]]) -> bool:
    """Whether all are in one folder that is neither a split nor the only class."""
    first = {parts[0] if parts else "" for parts in folders}
    if len(first) != 1 or first & {"", *SPLITS} or min(map(len, folders)) < 2:
        return False
    return not all(parts[1] in SPLITS for parts in folders) or min(map(len, folders)) > 2


def _place(parts: list[str]) -> tuple[str, str]:
    if parts and parts[0] in SPLITS:
        return parts[0], parts[1] if len(parts) > 1 else ""
    if len(parts) > 1 and parts[1] in SPLITS:
        return parts[1], parts[0]
    return "", parts[0] if parts else ""


def _check_splits(path: Path, entries: Sequence[Entry]) -> None:
    inside = next((entry for entry in entries if entry.split), None)
    outside = next((entry for entry in entries if not entry.split), None)
    if inside and outside:
        got = f"got shapes inside of a split ({inside.name}) and outside of any ({outside.name})"
        raise DataError(path, "", f"{got}: move them all into {', '.join(SPLITS[:-1])} or {SPLITS[-1]}, or none")


def _check_name(path: Path, name: str) -> None:
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        shown = name.encode(errors="replace").decode()
        raise DataError(path, shown, "its name is not UTF-8: rename it") from None
    if size > MAX_NAME_BYTES:
        got = f"has a name of {size:,} bytes, wanted at most {MAX_NAME_BYTES:,}"
        raise DataError(path, f"{name[:60]}...", f"{got}: rename it")


def _shapes_among(files: Iterator[_Found]) -> tuple[list[_Found], Counter[str]]:
    """The files that hold shapes, and how many others there are of each suffix."""
    by_suffix: dict[str, list[_Found]] = {}
    passed_over: Counter[str] = Counter()
    for file in files:
        suffix = PurePosixPath(file.name).suffix.lower()
        if suffix in SUFFIXES:
            by_suffix.setdefault(suffix, []).append(file)
        else:
            passed_over[suffix] += 1
    if by_suffix.keys() - set(_NOTES):
        passed_over.update({suffix: len(by_suffix.pop(suffix)) for suffix in _NOTES if suffix in by_suffix})
    return [file for files in by_suffix.values() for file in files], passed_over


def _single(path: Path) -> Tree:
    if path.suffix.lower() not in SUFFIXES:
        wanted = f"a folder, one of {' '.join(archive.SUFFIXES)} or of {' '.join(SUFFIXES)}"
        raise DataError(path, "", f"got {path.suffix or 'no suffix'}, wanted {wanted}")
    _check_name(path, path.name)
    status = path.stat()
    return Tree(path, (Entry(path.name, path, "", "", "", status.st_size, status.st_mtime_ns),), (), ())


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _members(path: Path) -> Iterator[_Found]:
    with archive.Archive(path) as opened:
        for name, info in opened.members.items():
            if not any(map(_is_hidden, name.split("/"))):
                yield _Found(name, info.file_size, info.CRC)


def _files(root: Path) -> Iterator[_Found]:
    """Every regular file below a folder; a list instead of recursion, as folders may be nested deeper than Python."""
    todo, count = [""], 0
    inside = root.resolve()
    while todo:
        folder = todo.pop()
        for file in _scan(root, folder):
            name = f"{folder}{file.name}"
            count += 1
            if count > MAX_FILES:
                raise DataError(root, "", f"holds more than {MAX_FILES:,} files and folders: split it")
            if file.is_symlink():
                _check_link(root, inside, name, Path(file.path))
            if file.is_dir(follow_symlinks=False):
                todo.append(f"{name}/")
                continue
            status = _status(root, name, file)
            if stat.S_ISREG(status.st_mode):
                yield _Found(name, status.st_size, status.st_mtime_ns)
            elif PurePosixPath(name).suffix.lower() in SUFFIXES:
                raise DataError(root, name, "is not a regular file: remove it")


def _scan(root: Path, folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(root / folder) as found:
            return [file for file in found if not _is_hidden(file.name)]
    except OSError as error:
        raise DataError(root, folder, f"cannot be read ({error.strerror}): check its permissions") from error


def _status(root: Path, name: str, file: os.DirEntry[str]) -> os.stat_result:
    try:
        return file.stat()
    except OSError as error:
        raise DataError(root, name, f"cannot be read ({error.strerror}): remove it or repair its link") from error


def _check_link(root: Path, inside: Path, name: str, path: Path) -> None:
    """A link to a file below the root is as good as the file."""
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:  # a link to itself
        raise DataError(root, name, "is a link that leads nowhere: remove it") from error
    if not target.is_relative_to(inside):
        raise DataError(root, name, f"is a link that leads out of the folder, to {target}: copy what it leads to")
    if target.is_dir():
        raise DataError(root, name, "is a link to a folder, which is not followed: copy the folder")
