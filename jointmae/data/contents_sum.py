"""One SHA-256 over what a group of an .h5 file of ours holds, however it is stored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

NAME = "contents_sha256"
"""The dataset beside those it is of."""


class ContentsSum:
    """Fed dataset after dataset, in the order of their names; the rows of one in as many calls as one likes."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def begin(self, name: str, shape: tuple[int, ...], dtype: np.dtype[np.generic] | None) -> None:
        """What comes next: numbers of a type, or strings (None)."""
        kind = "str" if dtype is None else dtype.newbyteorder("<").str
        self._digest.update(f"{name} {kind} {list(shape)}\n".encode())

    def numbers(self, values: NDArray[np.generic]) -> None:
        """Some rows of numbers."""
        self._digest.update(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data)

    def strings(self, values: tuple[str, ...]) -> None:
        """Some strings, none of which has a zero in it."""
        self._digest.update(b"".join(value.encode() + b"\0" for value in values))

    def hexdigest(self) -> str:
        """The sum of all so far."""
        return self._digest.hexdigest()


def sum_of(datasets: Mapping[str, NDArray[np.generic] | tuple[str, ...]]) -> str:
    """The sum of a group whose datasets are in memory."""
    total = ContentsSum()
    for name, values in sorted(datasets.items()):
        if isinstance(values, tuple):
            total.begin(name, (len(values),), None)
            total.strings(values)
        else:
            total.begin(name, values.shape, values.dtype)
            total.numbers(values)
    return total.hexdigest()
