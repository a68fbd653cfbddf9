"""What `jointmae.data.check` measures of each cloud of a block.

b clouds of a block, N points of a cloud.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jointmae.data.layouts.layout import Block

FLAT = 1e-6
"""The singular value, relative to the largest, below which a cloud has no extent in that direction: float32 rounds a
tilted plane to some 1e-7 of its size."""

_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Measures:
    """One cloud."""

    digest: tuple[int, int]  # equal for clouds of the same points, whatever their order
    bad_rows: NDArray[np.int64]  # rows that are NaN or infinite
    shape: str  # "", or why it is degenerate; "" where rows are bad
    repeated: float  # the share of points that another point equals
    radius: float  # the largest distance from the centre of mass; NaN where rows are bad


def measure(block: Block) -> list[Measures]:
    """The measures of each cloud of a block."""
    hashes = row_hashes(block.points)  # [T]
    ends = np.cumsum(block.sizes)  # [b]
    return [
        _measure(block.points[end - size : end], hashes[end - size : end])
        for end, size in zip(ends, block.sizes, strict=True)
    ]


def row_hashes(points: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Points [T, 3] -> [T]: 64 bits that depend on all bits of a point."""
    bits = np.ascontiguousarray(points).view(np.uint32).astype(np.uint64)  # [T, 3]
    hashes = np.zeros(len(points), dtype=np.uint64)
    for axis in range(3):
        hashes = _mix(hashes + bits[:, axis] + _ODD)
    return hashes


def _measure(points: NDArray[np.float32], hashes: NDArray[np.uint64]) -> Measures:
    digest = (int(hashes.sum(dtype=np.uint64)), int(_mix(hashes ^ _ODD).sum(dtype=np.uint64)))
    repeated = 1 - len(np.unique(hashes)) / len(hashes)
    bad_rows = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad_rows):
        return Measures(digest, bad_rows, "", repeated, float("nan"))
    centred = points - points.mean(axis=0, dtype=np.float64)  # [N, 3] float64
    radius = float(np.sqrt((centred**2).sum(axis=1)).max())
    return Measures(digest, bad_rows, _degenerate(points, centred, radius), repeated, radius)


def _degenerate(points: NDArray[np.float32], centred: NDArray[np.float64], radius: float) -> str:
    """Why a finite cloud is no solid shape, by the singular values of the centred cloud; else ""."""
    if len(points) == 1:
        return "one point"
    if (points == points[0]).all():
        return "all points equal"
    values = np.linalg.svd(centred / radius, compute_uv=False)  # [min(N, 3)], largest first
    rank = int((values > FLAT * values[0]).sum())
    return {1: "points on a line", 2: "points in a plane"}.get(rank, "")


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: a bijection of 64 bits in which every input bit changes about half of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed
