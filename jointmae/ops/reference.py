"""Every op in plain PyTorch: the definition, the oracle of the tests, and the fallback on devices without kernels.

B clouds, N points, M samples or queries, G groups, k neighbours, C channels, V views, H x W pixels.
A squared distance is (dx*dx + dy*dy) + dz*dz, each operation rounded, as in the kernels: indices agree bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _sq_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances between `a` [..., 3] and `b` [..., 3], broadcast; rounded in the order of the contract."""
    dx, dy, dz = (a - b).unbind(-1)
    return (dx * dx + dy * dy) + dz * dz


def farthest_point_sample(points: Tensor, num_samples: int, start: int, lengths: Tensor | None) -> Tensor:
    """See `jointmae.ops.farthest_point_sample`."""
    B, N, _ = points.shape
    sq_dist = points.new_full((B, N), torch.inf)
    if lengths is not None:
        padding = torch.arange(N, device=points.device) >= lengths[:, None]  # [B, N]
        sq_dist = sq_dist.masked_fill(padding, -1)  # never the farthest
    indices = [torch.full((B, 1), start, dtype=torch.int64, device=points.device)]
    for _ in range(num_samples - 1):
        last = points.gather(1, indices[-1][..., None].expand(-1, -1, 3))  # [B, 1, 3]
        sq_dist = torch.minimum(sq_dist, _sq_distances(points, last))
        indices.append(_first_argmax(sq_dist))
    return torch.cat(indices, dim=1)  # [B, M]


def knn(queries: Tensor, points: Tensor, k: int, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `jointmae.ops.knn`."""
    B, N, _ = points.shape
    sq_dists, indices = [], []
    for chunk in torch.split(queries, _rows_at_once(B * N), dim=1):  # [B, m, 3]
        sq_dist = _sq_distances(chunk[:, :, None], points[:, None])  # [B, m, N]
        if lengths is not None:
            padding = torch.arange(N, device=points.device) >= lengths[:, None, None]  # [B, 1, N]
            sq_dist = sq_dist.masked_fill(padding, torch.inf)
        values, order = _first_smallest(sq_dist, k)
        sq_dists.append(values)
        indices.append(order)
    return torch.cat(sq_dists, dim=1), torch.cat(indices, dim=1)  # [B, M, k]


def knn_backward(grad_sq_dists: Tensor, queries: Tensor, points: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of `knn`'s distances with respect to queries and points."""
    difference = queries[:, :, None] - group(points, indices)  # [B, M, k, 3]
    grad = 2 * grad_sq_dists[..., None] * difference
    return grad.sum(2), group_backward(-grad, indices, points.shape[1])


def group(features: Tensor, indices: Tensor) -> Tensor:
    """See `jointmae.ops.group`."""
    B, G, k = indices.shape
    C = features.shape[2]
    return features.gather(1, indices.reshape(B, G * k, 1).expand(-1, -1, C)).reshape(B, G, k, C)


def group_backward(grad: Tensor, indices: Tensor, N: int) -> Tensor:
    """The gradient of `group` with respect to its features: grad [B, G, k, C] -> [B, N, C]."""
    B, G, k, C = grad.shape
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    index = indices.reshape(B, G * k, 1).expand(-1, -1, C)
    grad_features = torch.zeros(B, N, C, dtype=dtype, device=grad.device)
    return grad_features.scatter_add(1, index, grad.reshape(B, G * k, C).to(dtype)).to(grad.dtype)


def knn_interpolate(queries: Tensor, points: Tensor, features: Tensor, k: int, lengths: Tensor | None) -> Tensor:
    """See `jointmae.ops.knn_interpolate`."""
    sq_dists, indices = knn(queries, points, k, lengths)  # [B, M, k]
    weights = interpolation_weights(sq_dists).to(features.dtype)
    return (weights[..., None] * group(features, indices)).sum(2)  # [B, M, C]


def interpolation_weights(sq_dists: Tensor) -> Tensor:
    """Inverse-distance weights that sum to 1, [B, M, k]; the same ones where every distance overflows."""
    inverse = 1 / (sq_dists.clamp(max=torch.finfo(sq_dists.dtype).max / 2) + 1e-8)
    return inverse / inverse.sum(-1, keepdim=True)


def chamfer_distance(
    x: Tensor, y: Tensor, lengths_x: Tensor | None, lengths_y: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Nearest squared distances and their arg-mins both ways; see `jointmae.ops.chamfer_distance`."""
    B, N, _ = x.shape
    M = y.shape[1]
    real_x = _real_points(x, lengths_x)  # [B, N]
    real_y = _real_points(y, lengths_y)  # [B, M]
    parts = []
    for b in torch.split(torch.arange(B, device=x.device), _rows_at_once(N * M)):
        sq_dist = _sq_distances(x[b, :, None], y[b, None])  # [b, N, M]
        real = real_x[b, :, None] & real_y[b, None]
        row = torch.where(real, sq_dist, torch.inf)
        parts.append((*_first_min(row), *_first_min(row.transpose(1, 2))))
    if not parts:
        return x.new_empty(0, N), x.new_empty(0, M), real_x.new_empty(0, N).long(), real_y.new_empty(0, M).long()
    d_xy, index_xy, d_yx, index_yx = (torch.cat(part) for part in zip(*parts, strict=True))
    d_xy, index_xy = torch.where(real_x, d_xy, 0), torch.where(real_x, index_xy, 0)
    d_yx, index_yx = torch.where(real_y, d_yx, 0), torch.where(real_y, index_yx, 0)
    return d_xy, d_yx, index_xy, index_yx


def chamfer_distance_backward(
    grad_d_xy: Tensor,
    grad_d_yx: Tensor,
    x: Tensor,
    y: Tensor,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    index_xy: Tensor,
    index_yx: Tensor,
) -> tuple[Tensor, Tensor]:
    """The gradient of `chamfer_distance`'s distances with respect to x and y."""
    grad_d_xy = torch.where(_real_points(x, lengths_x), grad_d_xy, 0)
    grad_d_yx = torch.where(_real_points(y, lengths_y), grad_d_yx, 0)
    grad_x, back_to_y = knn_backward(grad_d_xy[..., None], x, y, index_xy[..., None])
    grad_y, back_to_x = knn_backward(grad_d_yx[..., None], y, x, index_yx[..., None])
    return grad_x + back_to_x, grad_y + back_to_y


def _rows_at_once(row: int) -> int:
    """How many rows of `row` distances are held at a time."""
    return max(1, 2**24 // max(row, 1))


def _real_points(points: Tensor, lengths: Tensor | None) -> Tensor:
    """True where a point exists, [B, N]."""
    B, N, _ = points.shape
    if lengths is None:
        return torch.ones(B, N, dtype=torch.bool, device=points.device)
    return torch.arange(N, device=points.device) < lengths[:, None]


def _first_smallest(sq_dist: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest of each row, ascending, ties to the lowest index, which `Tensor.topk` alone leaves open."""
    if sq_dist.dtype != torch.float32:
        values, order = sq_dist.sort(dim=-1, stable=True)
        return values[..., :k], order[..., :k]
    # The bits of floats >= 0 order as integers do, so value and index fit into one key; four times as fast as the sort.
    keys = (sq_dist.view(torch.int32).long() << 32) | torch.arange(sq_dist.shape[-1], device=sq_dist.device)
    keys = keys.topk(k, largest=False).values
    return (keys >> 32).int().view(torch.float32), keys & 0xFFFFFFFF


def _first_min(values: Tensor) -> tuple[Tensor, Tensor]:
    """The minimum of each row and its lowest index, [..., N] -> [...]."""
    minimum = values.amin(-1, keepdim=True)
    return minimum.squeeze(-1), _first_index(values == minimum).squeeze(-1)


def _first_argmax(values: Tensor) -> Tensor:
    """The lowest index of each row's maximum, [B, N] -> [B, 1]; `Tensor.argmax` leaves the choice open."""
    return _first_index(values == values.amax(1, keepdim=True))


def _first_index(found: Tensor) -> Tensor:
    """The first True of each row, [..., N] -> [..., 1]; the last index where there is none (NaN), never one beyond."""
    N = found.shape[-1]
    position = torch.arange(N, device=found.device)
    return torch.where(found, position, N - 1).amin(-1, keepdim=True)
