"""A cloud as a data set holds it: so many points, in the unit sphere. In NumPy, as converting needs no torch."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # [N, 3]


def seed_of(seed: int, name: str) -> int:
    """The seed of one file, in [0, 2^63): a function of the two alone, not of the other files or their order."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def is_test(name: str, fraction: float) -> bool:
    """Whether a file belongs to a test split of about this part of all files; a function of its name alone."""
    digest = hashlib.sha256(f"test\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") < fraction * 2**64


def resample(points: Points, num_points: int, seed: int) -> Points:
    """Exactly `num_points` rows: of more a random subset, of fewer all, over and over; in random order.

    So the first rows of a cloud, which is what commands take of a large one, are no corner of a scan. Equal seeds give
    equal rows on every machine.
    """
    keys = np.random.PCG64(seed).random_raw(len(points))  # the raw stream, as NumPy keeps no other one between versions
    order = np.argsort(keys, kind="stable")
    return points[order[np.arange(num_points) % len(points)]]


def to_unit_sphere(points: Points) -> Points:
    """`normalize.normalize_unit_sphere` of one cloud: mean 0, farthest point at distance 1, all 0 if all are equal."""
    largest = np.abs(points).max()
    points = points / (largest if largest > 0 else 1.0)
    points = points - points[:1]
    points = points - points.mean(axis=0)
    radius = np.sqrt(np.square(points).sum(axis=1).max())
    return points / (radius if radius > 0 else 1.0)
