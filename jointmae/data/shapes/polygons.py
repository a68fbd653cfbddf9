"""Triangles from the polygons of a mesh."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jointmae.errors import DataError


def triangulate(name: str, sizes: NDArray[np.int64], corners: NDArray[np.int64], num_points: int) -> NDArray[np.int64]:
    """Polygons of `sizes` [P] corners each, end to end in `corners` [sum of sizes] -> triangles [F, 3].

    Each is cut around its first corner; one of fewer than three corners gives none. Raises DataError for a corner that
    is not one of the points.
    """
    outside = (corners < 0) | (corners >= num_points)
    if outside.any():
        place = int(outside.argmax())
        face = int(np.searchsorted(np.cumsum(sizes), place, side="right"))
        got = f"got vertex {corners[place]}, wanted 0 to {num_points - 1}"
        raise DataError(name, f"face {face}", f"{got}: the file is damaged, copy or export it again")
    counts = np.maximum(sizes - 2, 0)  # [P] triangles
    starts = np.cumsum(sizes) - sizes  # [P]
    first = np.repeat(starts, counts)  # [F] places in `corners`
    second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)  # [F]
    triangles: NDArray[np.int64] = corners[np.stack([first, second, second + 1], axis=1)]
    return triangles


def triangulate_lists(name: str, polygons: Sequence[Sequence[int]], num_points: int) -> NDArray[np.int64]:
    """The same for polygons as lists of corners."""
    sizes = np.array([len(polygon) for polygon in polygons], np.int64)
    try:
        corners = np.array([corner for polygon in polygons for corner in polygon], np.int64)
    except OverflowError as error:
        raise DataError(name, "faces", "got a vertex number of more than 64 bits: the file is damaged") from error
    return triangulate(name, sizes, corners, num_points)
