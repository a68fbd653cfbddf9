"""Feature propagation of PointNet++ (Qi et al. 2017, section 3.4). B clouds, N points, M queries, C channels.

Composed of `knn` and `group`, which do the work and carry the gradients: it has no kernel of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jointmae.ops import reference
from jointmae.ops.checks import require_count, require_floating, require_lengths, require_points, require_same, shape_of
from jointmae.ops.group import group
from jointmae.ops.knn import knn

_OP = "knn_interpolate"


def knn_interpolate(
    queries: Tensor, points: Tensor, features: Tensor, k: int = 3, lengths: Tensor | None = None
) -> Tensor:
    """Features [B, M, C] at `queries` [B, M, 3]: means of the `features` [B, N, C] of the k nearest `points` [B, N, 3].

    The weights are 1 / (squared distance + 1e-8), scaled to sum to 1, so that a query on a point gets its features.
    Differentiable with respect to queries, points and features; the result has the dtype of `features`. With `lengths`
    [B] int64, only the first lengths[b] points of cloud b exist. Ties as in `knn`.

    Raises ValueError unless 1 <= k <= N (and <= every length), and, on the CPU, if a coordinate is not finite. Raises
    TypeError for integer points or features.
    """
    require_points(_OP, "queries", queries)
    require_points(_OP, "points", points)
    require_same(_OP, "queries", queries, "points", points)
    require_floating(_OP, "features", features)
    if features.dim() != 3 or features.shape[1] != points.shape[1]:
        raise ValueError(f"{_OP}: features must have shape [B, N={points.shape[1]}, C], got {shape_of(features)}")
    require_same(_OP, "points", points, "features", features)
    require_count(_OP, "k", k, "N", points.shape[1])
    require_lengths(_OP, "lengths", lengths, points)
    sq_dists, indices = knn(queries, points, k, lengths)  # [B, M, k]
    weights = reference.interpolation_weights(sq_dists)  # [B, M, k] float32 or float64
    dtype = torch.promote_types(weights.dtype, features.dtype)  # half precision is summed in float32
    neighbors = group(features, indices).to(dtype)  # [B, M, k, C]
    return torch.einsum("bmk,bmkc->bmc", weights.to(dtype), neighbors).to(features.dtype)  # [B, M, C]
