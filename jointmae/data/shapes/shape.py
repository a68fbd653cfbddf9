"""One cloud or mesh, as its file has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Shape:
    """A cloud, or a mesh of triangles."""

    points: NDArray[np.float32] | NDArray[np.float64]  # [N, 3]: a cloud's points, or a mesh's vertices
    faces: NDArray[np.int64] | None = None  # [F, 3] rows of `points`; None for a cloud


def as_points(numbers: NDArray[Any]) -> NDArray[np.float32] | NDArray[np.float64]:
    """Native float32 where it holds every value of the type of `numbers`, else float64; a copy where needed."""
    if np.promote_types(numbers.dtype, np.float32) == np.float32:
        return np.ascontiguousarray(numbers, np.float32)
    return np.ascontiguousarray(numbers, np.float64)
