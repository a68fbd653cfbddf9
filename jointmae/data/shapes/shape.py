"""One cloud or mesh, as its file has it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Shape:
    """A cloud, or a mesh of triangles."""

    points: NDArray[np.float32] | NDArray[np.float64]  # [N, 3]: a cloud's points, or a mesh's vertices
    faces: NDArray[np.int64] | None = None  # [F, 3] rows of `points`; None for a cloud
