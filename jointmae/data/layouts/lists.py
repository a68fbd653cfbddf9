"""The list files of the official sets: names that others wrote, of which none may lead out of the set's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from jointmae.errors import DataError

MAX_LIST_BYTES = 64 * 2**20
"""The largest official list has 2 MB."""

Names = tuple[str, ...]


def is_file(path: Path) -> bool:
    """Whether a file is there; False where that cannot be asked."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether a folder is there; False where that cannot be asked."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def read_lines(path: Path) -> Names:
    """The lines of a list that are not empty, without the white space around them. Raises DataError for none."""
    lines = tuple(line.strip() for line in _read_text(path).splitlines() if line.strip())
    if not lines:
        raise DataError(path, "", "is empty: copy it again")
    return lines


def read_json_lines(path: Path) -> Names:
    """The strings of a JSON list, in the file's order. Raises DataError for anything else, and for none."""
    try:
        lines = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(path, "", f"is not JSON ({str(error)[:200]}): copy it again") from error
    if not isinstance(lines, list) or not lines or not all(isinstance(line, str) for line in lines):
        raise DataError(path, "", "wanted a JSON list of at least one string: copy it again")
    return tuple(lines)


def expect_unique(path: Path, lines: Names) -> Names:
    """The lines themselves. Raises DataError naming one that occurs twice."""
    first: dict[str, int] = {}
    for i, line in enumerate(lines):
        if line in first:
            raise DataError(path, f"line {i + 1}", f"{shown(line)} is also line {first[line] + 1}: remove one of them")
        first[line] = i
    return lines


def expect_below(path: Path, i: int, line: str) -> str:
    """Line i of a list, which must be a relative path that does not leave its folder. Raises DataError."""
    parts = line.split("/")  # an absolute path begins with an empty part
    if not {"..", ".", ""}.isdisjoint(parts) or "\\" in line or "\0" in line or any(map(_has_drive, parts)):
        what = f"got {shown(line)}, wanted a path below the folder of the set, parts joined by /: correct the list"
        raise DataError(path, f"line {i + 1}", what)
    return line


def _has_drive(part: str) -> bool:
    return bool(PureWindowsPath(part).drive)


def last_part(line: str) -> str:
    """The file's own name; lists of the official sets begin with the folder in which their authors kept the set."""
    return PurePosixPath(line).name


def expect_inside(root: Path, path: Path) -> None:
    """Raises DataError where links lead from `root` to a file outside of it."""
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise DataError(path, "", f"is a link that leads out of {root}: put the file itself there")


def shown(line: str) -> str:
    """A line as a message shows it: quoted, escaped, and cut."""
    return repr(line if len(line) <= 200 else f"{line[:200]}...")


def missing(path: Path, names: Iterable[str], tree: str) -> DataError:
    """What to raise where a set's folder has none of the files `names`."""
    return DataError(path, "", f"holds no {' and no '.join(names)}; wanted\n{tree}")


def read_at_most(path: Path, max_bytes: int, is_it: str) -> bytes:
    """A file of at most so many bytes. Raises DataError, of a larger one with the question whether `is_it`."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(path, "", f"cannot be read ({reason}): copy it again, or correct the list of it") from error
    if len(data) > max_bytes:
        raise DataError(path, "", f"has more than {max_bytes:,} bytes: is it {is_it}?")
    return data


def _read_text(path: Path) -> str:
    data = read_at_most(path, MAX_LIST_BYTES, "a list of files")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(path, f"byte {error.start}", "is not UTF-8: copy the list again") from error
