""".xyz .txt .pts .csv: a point a row, x y z first; and rows of numbers for the other formats that are text."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from jointmae.data.shapes.shape import Shape
from jointmae.errors import DataError

MAX_HEADER_LINES = 1000
"""Comments and headers before the first point."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class _Start(NamedTuple):
    """Where the points begin."""

    offset: int
    num_points: int | None  # how many there are, where the file says so
    comma: bool  # what stands between two numbers


def read_text(name: str, data: bytes) -> Shape:
    """Rows of at least three numbers between spaces, tabs or commas; the first three columns are x y z, float64.

    Before the first row there may be a row of column names and one with only the number of points, which must then be
    right. Empty rows and what follows a # are passed over, and so are rows before the first that begin with //.
    """
    data = data.removeprefix(_BYTE_ORDER_MARK)
    if b"\n" not in data:
        data = data.replace(b"\r", b"\n")
    start = _find_start(name, data)
    rows = io.BytesIO(data)  # shares the bytes
    rows.seek(start.offset)
    delimiter = "," if start.comma else None
    points = read_columns(name, "points", rows, (0, 1, 2), comments="#", delimiter=delimiter)
    if start.num_points not in (None, len(points)):
        what = f"the first row says {start.num_points:,} points, but there are {len(points):,}"
        raise DataError(name, "", f"{what}: the file is damaged or not fully written")
    return Shape(points)


def read_columns(
    name: str,
    item: str,
    rows: Iterable[bytes],
    columns: Sequence[int],
    dtype: DTypeLike = np.float64,
    comments: str | None = None,
    **options: Any,
) -> NDArray[Any]:
    """Some columns of rows of numbers, [rows, columns]; what stands in other columns is not looked at.

    There must be at least one row; `options` are those of numpy.loadtxt. Raises DataError for a row without such
    numbers.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # no rows: said below
            values: NDArray[Any] = np.loadtxt(rows, dtype, comments=comments, usecols=columns, ndmin=2, **options)
    except (ValueError, OverflowError) as error:
        reason = str(error)[:200].rstrip(".")
        what = f"wanted rows of at least {max(columns) + 1} columns with numbers ({reason})"
        raise DataError(name, item, f"{what}: remove what is not numbers, or copy the file again") from error
    if not len(values):  # loadtxt takes more characters for spaces than bytes.strip does
        raise DataError(name, item, "holds no rows of numbers: remove the file")
    return values


def _find_start(name: str, data: bytes) -> _Start:
    offset, count, headers = 0, None, 0
    for _ in range(MAX_HEADER_LINES):
        if offset >= len(data):
            raise DataError(name, "", "holds no points: remove the file")
        end = data.find(b"\n", offset) % (len(data) + 1)  # -1, at the last row, becomes the length
        row = data[offset:end].split(b"#")[0].strip()
        words = row.replace(b",", b" ").split()
        if count is None and len(words) == 1 and words[0].isdigit() and len(words[0]) < 19:
            count = int(words[0])
        elif words and not row.startswith(b"//"):
            if headers or any(_is_number(word) for word in words):
                return _Start(offset, count, b"," in row)
            headers += 1
        offset = end + 1
    raise DataError(name, "", f"got {MAX_HEADER_LINES} rows without a point, wanted x y z in each: remove them")


def _is_number(word: bytes) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
