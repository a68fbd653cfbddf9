"""Sampling, grouping, Chamfer distance and depth maps of `naive_step`, in plain PyTorch.

B clouds, N points, M samples or queries, k neighbours, C channels, V views, S image side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jointmae.config import PATCH_SIZE, ModelConfig
from jointmae.model.projection import intrinsics

# The same as the defaults of `ops.project_points`.
SIGMA, TEMPERATURE, BACKGROUND = 1.0, 0.05, 0.1


def index_points(points: Tensor, indices: Tensor) -> Tensor:
    """[B, N, C] at indices [B, ...] -> [B, ..., C]."""
    rows = torch.arange(len(points), device=points.device).view(-1, *[1] * (indices.dim() - 1))
    return points[rows, indices]


def farthest_point_sample(points: Tensor, num_samples: int) -> Tensor:
    """Points [B, N, 3] -> indices [B, M]."""
    B, N, _ = points.shape
    indices = torch.zeros(B, num_samples, dtype=torch.int64, device=points.device)
    distance = torch.full((B, N), torch.inf, dtype=points.dtype, device=points.device)
    farthest, rows = indices[:, 0], torch.arange(B, device=points.device)
    for i in range(num_samples):
        indices[:, i] = farthest
        last = points[rows, farthest][:, None]  # [B, 1, 3]
        distance = torch.minimum(distance, ((points - last) ** 2).sum(-1))
        farthest = distance.max(-1)[1]
    return indices


def knn(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """Queries [B, M, 3], points [B, N, 3] -> indices of the nearest [B, M, k]."""
    return torch.cdist(queries, points).topk(k, largest=False, sorted=False)[1]


def chamfer_distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared distances both ways, added, of clouds [B, N, 3] and [B, M, 3]."""
    squares = (x**2).sum(-1)[:, :, None] + (y**2).sum(-1)[:, None]  # [B, N, M]
    distance = torch.baddbmm(squares, x, y.transpose(1, 2), alpha=-2)
    return distance.min(2)[0].mean() + distance.min(1)[0].mean()


class View(NamedTuple):
    """Where points are in the images of V cameras, [B, V, N] each."""

    u: Tensor  # to the right, in pixels
    v: Tensor  # down
    z: Tensor  # away from the camera
    column: Tensor
    row: Tensor
    kept: Tensor  # bool: in front of the camera and in the frame


def look_at(config: ModelConfig, points: Tensor, cameras: Tensor) -> View:
    """Points [B, N, 3] seen by cameras [B, V, 3, 4]."""
    S, matrix = config.image_size, intrinsics(config, points.device).to(points.dtype)
    x, y, z = (points[:, None] @ cameras[..., :3].transpose(-1, -2) + cameras[..., None, :, 3]).unbind(-1)
    in_front = z > 1e-6
    z = torch.where(in_front, z, 1)
    u, v = matrix[0, 0] * x / z + matrix[0, 2], matrix[1, 1] * y / z + matrix[1, 2]
    column, row = u.detach().floor(), v.detach().floor()
    kept = in_front & (column >= 0) & (column < S) & (row >= 0) & (row < S)
    return View(u, v, z, column, row, kept)


def tokens_under(config: ModelConfig, view: View) -> Tensor:
    """The 2D token under each point, [B, V, N]; -1 outside the frame."""
    token = view.row // PATCH_SIZE * config.grid_size + view.column // PATCH_SIZE
    return token.where(view.kept, -1).long()


def depth_maps(config: ModelConfig, view: View, soft: bool) -> Tensor:
    """Unit depth maps [B, V, S, S]: the nearest point of each pixel, or the soft blend of all that cover it."""
    B, V, _ = view.z.shape
    S, r = config.image_size, config.footprint_radius
    steps = torch.arange(-r, r + 1, device=view.z.device)
    dy, dx = (steps.flatten() for steps in torch.meshgrid(steps, steps, indexing="ij"))
    column, row = view.column[..., None] + dx, view.row[..., None] + dy  # [B, V, N, (2r + 1)^2]
    inside = view.kept[..., None] & (column >= 0) & (column < S) & (row >= 0) & (row < S)
    target = torch.where(inside, row * S + column, S * S).long().flatten(2)  # the last slot is no pixel
    z = view.z[..., None].expand(inside.shape).flatten(2)
    empty = z.new_zeros(B, V, S * S + 1)
    nearest = (empty + torch.inf).scatter_reduce(2, target, z.detach(), "amin")
    depth, coverage = nearest, 1
    if soft:
        square = (column + 0.5 - view.u[..., None]) ** 2 + (row + 0.5 - view.v[..., None]) ** 2
        behind = nearest.gather(2, target) - z
        weight = torch.exp(-square.flatten(2) / (2 * SIGMA**2)) * torch.exp(behind / TEMPERATURE)
        total = empty.scatter_add(2, target, weight)
        depth = empty.scatter_add(2, target, weight * z) / total.where(total > 0, 1)
        coverage = total / (total + BACKGROUND)
    near = config.camera_distance - 1
    image = torch.where(nearest < torch.inf, coverage * (1 - (depth - near) / 2), 0)
    return image[..., :-1].view(B, V, S, S)
