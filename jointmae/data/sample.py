"""Points on the surface of a mesh."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jointmae.data.shapes.shape import Shape, as_points


def sample_surface(shape: Shape, num_points: int, seed: int) -> NDArray[np.float32] | NDArray[np.float64]:
    """`num_points` independent points, uniform on the surface of a mesh: [num_points, 3] of its own dtype.

    A triangle is drawn by its area, a point in it as (1-r) a + r (1-t) b + r t c with r^2 and t uniform (Osada et al.,
    Shape Distributions, 2002). Triangles without area get no point. The same bits for the same `seed` (its low 64
    bits count) on one machine, in every version of NumPy: RandomState's stream never changes. Raises ValueError for
    a cloud, num_points < 1, vertices in use that are not finite, or a mesh without area.
    """
    if shape.faces is None or num_points < 1:
        got = "a cloud" if shape.faces is None else f"{num_points} points"
        raise ValueError(f"sample_surface: wanted a mesh and at least 1 point, got {got}")
    corners = shape.points.astype(np.float64)[shape.faces]  # [F, 3, 3]
    numbers = np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]).random_sample((3, num_points))
    a, b, c = corners[_draw(_areas(corners), numbers[0])].transpose(1, 0, 2)  # [num_points, 3] each
    r, t = np.sqrt(numbers[1])[:, None], numbers[2][:, None]
    points = as_points((1 - r) * a + r * (1 - t) * b + r * t * c)
    return points.astype(np.float32) if shape.points.dtype == np.float32 else points


def _areas(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is proportional to the areas of triangles [F, 3, 3]: [F]; scaled first, so that no square leaves float64."""
    largest = np.abs(corners).max()
    if not np.isfinite(largest):
        raise ValueError("the mesh has vertices that are NaN or infinite: repair it")
    scaled = corners / (largest or 1.0)
    crosses = np.cross(scaled[:, 1] - scaled[:, 0], scaled[:, 2] - scaled[:, 0])  # [F, 3]
    areas: NDArray[np.float64] = np.sqrt(np.square(crosses).sum(axis=1))
    return areas


def _draw(areas: NDArray[np.float64], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """A triangle for each number in [0, 1), as likely as its area is large."""
    upper = np.cumsum(areas)
    if not upper[-1] > 0:
        raise ValueError("the mesh has no area, all of its triangles are points or lines: remove the file")
    last = np.flatnonzero(areas)[-1]  # rounding may lift a number to the total itself
    drawn: NDArray[np.int64] = np.minimum(np.searchsorted(upper, uniform * upper[-1], side="right"), last)
    return drawn
