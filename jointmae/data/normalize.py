"""Where a cloud sits and how large it is must not matter: every cloud is moved and scaled into the unit sphere."""

from __future__ import annotations

from torch import Tensor


def normalize_unit_sphere(points: Tensor) -> Tensor:
    """Move the mean of `points` [..., N, 3] to the origin and the farthest point to distance 1; same shape and dtype.

    Any finite scale and offset is safe: sizes are brought to 1 before they are squared, and coordinates are taken
    relative to the first point before they are averaged. A cloud whose points are all equal becomes all 0, never NaN.
    """
    largest = points.abs().amax(dim=(-2, -1), keepdim=True)  # [..., 1, 1]
    points = points / largest.where(largest > 0, 1.0)
    points = points - points[..., :1, :]
    points = points - points.mean(dim=-2, keepdim=True)
    radius = points.square().sum(dim=-1, keepdim=True).amax(dim=-2, keepdim=True).sqrt()  # [..., 1, 1]
    return points / radius.where(radius > 0, 1.0)
