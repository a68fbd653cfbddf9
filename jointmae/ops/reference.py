"""Every op in plain PyTorch: the definition, the oracle of the tests, and the fallback on devices without kernels.

B clouds, N points, M samples or queries, G groups, k neighbours, C channels, V views, H x W pixels.
A squared distance is (dx*dx + dy*dy) + dz*dz, each operation rounded, as in the kernels: indices agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

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


def knn_backward(
    grad_sq_dists: Tensor,
    queries: Tensor,
    points: Tensor,
    indices: Tensor,
    add_up: Callable[[Tensor, Tensor, int], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradient of `knn`'s distances with respect to queries and points; `add_up` in place of `group_backward`."""
    difference = queries[:, :, None] - group(points, indices)  # [B, M, k, 3]
    grad = 2 * grad_sq_dists[..., None] * difference
    return grad.sum(2), (add_up or group_backward)(-grad, indices, points.shape[1])


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
    add_up: Callable[[Tensor, Tensor, int], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradient of `chamfer_distance`'s distances with respect to x and y; `add_up` as in `knn_backward`."""
    grad_d_xy = torch.where(_real_points(x, lengths_x), grad_d_xy, 0)
    grad_d_yx = torch.where(_real_points(y, lengths_y), grad_d_yx, 0)
    grad_x, back_to_y = knn_backward(grad_d_xy[..., None], x, y, index_xy[..., None], add_up)
    grad_y, back_to_x = knn_backward(grad_d_yx[..., None], y, x, index_yx[..., None], add_up)
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


class _View(NamedTuple):
    """Where the points of each view are: [B, V, N] each, and the pixels they cover, [B, V, N, S]."""

    u: Tensor
    v: Tensor
    z: Tensor  # camera z; 1 for points behind the camera
    column: Tensor  # int64, -1 where dropped
    row: Tensor
    target: Tensor  # int64, H * W where dropped or outside the frame
    offset_x: Tensor  # from (u, v) to the covered pixel's centre
    offset_y: Tensor


def _project(points: Tensor, world_to_cam: Tensor, intrinsics: Tensor, H: int, W: int, radius: int) -> _View:
    x, y, z = points[:, None].unbind(-1)  # [B, 1, N]
    m = world_to_cam[..., None]  # [B, V, 3, 4, 1]
    x, y, z = (((m[:, :, a, 0] * x + m[:, :, a, 1] * y) + m[:, :, a, 2] * z) + m[:, :, a, 3] for a in range(3))
    in_front = (z > 1e-6) & (z < torch.inf)
    z = torch.where(in_front, z, 1)
    k = intrinsics[..., None]  # [B, V, 3, 3, 1]
    u = (k[:, :, 0, 0] * x) / z + k[:, :, 0, 2]  # [B, V, N]
    v = (k[:, :, 1, 1] * y) / z + k[:, :, 1, 2]
    column, row = u.detach().floor(), v.detach().floor()
    kept = in_front & (column >= 0) & (column < W) & (row >= 0) & (row < H)
    column, row = (torch.where(kept, pixel, -1).long() for pixel in (column, row))
    span = torch.arange(-radius, radius + 1, device=points.device)
    x = (column[..., None, None] + span.expand(len(span), -1)).flatten(-2)  # [B, V, N, S]
    y = (row[..., None, None] + span[:, None].expand(-1, len(span))).flatten(-2)
    inside = kept[..., None] & (x >= 0) & (x < W) & (y >= 0) & (y < H)
    target = torch.where(inside, y * W + x, H * W)
    return _View(u, v, z, column, row, target, x + 0.5 - u[..., None], y + 0.5 - v[..., None])


def project_points(
    points: Tensor,
    world_to_cam: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
    radius: int,
    mode: str,
    sigma: float,
    temperature: float,
    background: float,
) -> tuple[Tensor, ...]:
    """See `jointmae.ops.project_points`. The last output is the sum of weights. Differentiable by itself.

    Coverage is empty but in the mode soft, the sum of weights is empty in zbuffer. On a GPU the sums of the modes soft
    and harmonic run in no fixed order.
    """
    B, N, _ = points.shape
    V = world_to_cam.shape[1]
    view = _project(points, world_to_cam, intrinsics, height, width, radius)
    target = view.target.flatten(2)  # [B, V, N * S]
    z = view.z[..., None].expand_as(view.target).flatten(2)
    point = torch.arange(N, device=points.device)[:, None].expand_as(view.target).flatten(2)

    slots = (B, V, height * width + 1)  # the last one takes what is outside
    z_min = z.new_full(slots, torch.inf).scatter_reduce(2, target, z.detach(), "amin")
    nearest = z.detach() == z_min.gather(2, target)
    index = point.new_full(slots, N).scatter_reduce(2, target, torch.where(nearest, point, N), "amin")
    index[..., -1] = N
    covered = index < N
    weight_sum = coverage = None
    if mode == "zbuffer":
        depth = torch.where(covered, view.z.gather(2, index.clamp(max=N - 1)), 0)
    else:
        w = 1 / z
        if mode == "soft":
            sq_dist = (view.offset_x.square() + view.offset_y.square()).flatten(2)
            w = torch.exp(sq_dist / (-2 * sigma**2)) * torch.exp((z_min.gather(2, target) - z) / temperature)
        weight_sum = z.new_zeros(slots).scatter_add(2, target, w)
        total = z.new_zeros(slots).scatter_add(2, target, w * z)
        depth = torch.where(weight_sum > 0, total / weight_sum.where(weight_sum > 0, 1), 0)
        coverage = weight_sum / (weight_sum + background) if mode == "soft" else None
    index = torch.where(covered, index, -1).int()

    def image(values: Tensor | None) -> Tensor:
        if values is None:
            return z.new_empty(0)
        return values[..., :-1].reshape(B, V, height, width).contiguous()  # the strides that tracing has been told

    pixels = torch.stack([view.column, view.row], dim=-1).int()  # [B, V, N, 2]
    dropped = (view.column < 0).sum(-1)
    return (
        image(depth),
        image(index),
        image(coverage),
        pixels,
        dropped,
        image(weight_sum),
    )


def project_points_backward(
    grad_depth: Tensor | None,
    grad_coverage: Tensor | None,
    points: Tensor,
    world_to_cam: Tensor,
    intrinsics: Tensor,
    depth: Tensor,
    index: Tensor,
    weight_sum: Tensor,
    radius: int,
    mode: str,
    sigma: float,
    temperature: float,
    background: float,
) -> Tensor:
    """The gradient to the points [B, N, 3]: each point gathers from the pixels of its footprint."""
    B, V, H, W = depth.shape
    view = _project(points, world_to_cam, intrinsics, H, W, radius)

    def at_pixels(image: Tensor | None) -> Tensor:  # [B, V, H, W] -> [B, V, N, S], 0 outside the frame
        if image is None:
            return torch.zeros_like(view.offset_x)
        padded = torch.nn.functional.pad(image.flatten(2), (0, 1))
        return padded.gather(2, view.target.flatten(2)).view_as(view.target)

    z, g = view.z[..., None], at_pixels(grad_depth)
    u, v = torch.zeros_like(view.u), torch.zeros_like(view.v)  # gradients to u and v, [B, V, N]
    if mode == "zbuffer":
        won = at_pixels(index + 1) == torch.arange(1, points.shape[1] + 1, device=points.device)[:, None]
        grad_z = (g * won).sum(-1)
    elif mode == "harmonic":
        grad_z = (g * at_pixels(depth) / at_pixels(weight_sum).where(g != 0, 1) / z.square()).sum(-1)
    else:
        total, D = at_pixels(weight_sum), at_pixels(depth)
        z_min = view.z.gather(2, index.clamp(min=0).flatten(2).long()).view_as(depth)  # any z where nothing is covered
        w = torch.exp((view.offset_x.square() + view.offset_y.square()) / (-2 * sigma**2))
        w = w * torch.exp((at_pixels(z_min) - z).clamp(max=0) / temperature)
        w_over_total = torch.where(total > 0, w / total, 0)
        by_coverage = at_pixels(grad_coverage) * background / (total + background).square()
        by_weight = g * w_over_total * (z - D) + by_coverage * w  # w times the gradient to w
        u, v = ((by_weight * offset).sum(-1) / sigma**2 for offset in (view.offset_x, view.offset_y))
        grad_z = (g * w_over_total - by_weight / temperature).sum(-1)
    k, m = intrinsics[..., None], world_to_cam[..., None]
    x = u * k[:, :, 0, 0] / view.z  # through u = fx x / z + cx and v = fy y / z + cy
    y = v * k[:, :, 1, 1] / view.z
    z = grad_z - (u * (view.u - k[:, :, 0, 2]) + v * (view.v - k[:, :, 1, 2])) / view.z
    grads = [m[:, :, 0, a] * x + m[:, :, 1, a] * y + m[:, :, 2, a] * z for a in range(3)]
    return torch.stack(grads, dim=-1).sum(1)  # [B, N, 3]


def alignment_mask(cell: Tensor, num_3d: int, scheme: tuple[str, str]) -> Tensor:
    """Which key each query may read, bool [B, L, L] (query, key); see `jointmae.ops.local_aligned_attention`."""
    is_3d = torch.arange(cell.shape[1], device=cell.device) < num_3d  # [L]
    valid = (cell[:, :, None] == cell[:, None, :]) & (cell >= 0)[:, :, None]  # [B, L, L]
    valid = valid | ~(is_3d[:, None] ^ is_3d)  # not ==: Inductor of torch 2.13 cannot compare booleans
    if scheme[0] == "global":
        valid = valid | (~is_3d[:, None] & is_3d)
    if scheme[1] == "global":
        valid = valid | (is_3d[:, None] & ~is_3d)
    return valid


def local_aligned_attention(
    q: Tensor, k: Tensor, v: Tensor, cell: Tensor, num_3d: int, scheme: tuple[str, str]
) -> Tensor:
    """See `jointmae.ops.local_aligned_attention`; half precision is computed in float32."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    scores = q.to(dtype) @ k.to(dtype).transpose(-1, -2) * q.shape[-1] ** -0.5  # [B, h, L, L]
    scores = scores.masked_fill(~alignment_mask(cell, num_3d, scheme)[:, None], -torch.inf)
    out: Tensor = scores.softmax(-1) @ v.to(dtype)
    return out.to(q.dtype)
