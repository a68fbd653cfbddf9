"""Cameras around the unit sphere, and depth maps in [0, 1]: equation 1 of the paper.

B clouds, N points, V views, S the side of the square depth map in pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from jointmae import ops
from jointmae.config import PATCH_SIZE, ModelConfig

_FIXED_VIEWS: dict[str, list[tuple[float, float]]] = {  # (azimuth, elevation) in units of pi, as PointCLIP places them
    "fixed6": [(0, 0), (0.5, 0), (1, 0), (1.5, 0), (0, 0.49), (0, -0.49)],
    "fixed10": [(k / 4, 0) for k in range(8)] + [(0, 0.49), (0, -0.49)],
}


class View(NamedTuple):
    """Where the camera of a view stands, in radians about the cloud's up axis."""

    azimuth: Tensor  # [B]
    elevation: Tensor  # [B]


class DepthMaps(NamedTuple):
    """What one cloud looks like from V views."""

    images: Tensor  # [B, V, S, S], unit depth: 1 is near, towards 0 is far, 0 is background
    pixels: Tensor  # [B, V, N, 2] int32 (x, y) of each point, (-1, -1) outside


def choose_view(config: ModelConfig, uniforms: Tensor) -> View:
    """The view of each cloud from `uniforms` [B, 3] in [0, 1): azimuth, size and sign of the elevation (D 7)."""
    if config.views == "random":
        low, high = config.elevation
        sign = torch.where(uniforms[:, 2] < 0.5, -1.0, 1.0)
        return View(2 * math.pi * uniforms[:, 0], sign * (low + (high - low) * uniforms[:, 1]))
    angles = uniforms.new_tensor(_FIXED_VIEWS[config.views]) * math.pi  # [number of views, 2]
    chosen = angles[(uniforms[:, 0] * len(angles)).long()]
    return View(chosen[:, 0], chosen[:, 1])


def intrinsics(config: ModelConfig, device: torch.device) -> Tensor:
    """Pinhole matrix [3, 3] whose focal length lets the unit sphere fill the image exactly."""
    half = config.image_size / 2
    focal = half * math.sqrt(config.camera_distance**2 - 1)  # the sphere's silhouette is a cone of sine 1 / distance
    matrix = torch.eye(3, device=device)  # filled on the device: taking numbers there would wait for it
    matrix.diagonal()[:2].fill_(focal)
    matrix[:2, 2].fill_(half)
    return matrix


def world_to_cam(config: ModelConfig, view: View, up: Tensor, num_views: int) -> Tensor:
    """Matrices [B, V, 3, 4] of the view and its V - 1 turns about `up` [B, 3], evenly over the circle (D 19).

    The camera looks at the origin; its x axis points right, y down and z forward.
    """
    turns = torch.arange(num_views, device=up.device) * (2 * math.pi / max(num_views, 1))
    azimuth = view.azimuth[:, None] + turns  # [B, V]
    elevation = view.elevation[:, None].expand_as(azimuth)
    side, front = _horizontal_axes(up)
    horizontal = azimuth.cos()[..., None] * side[:, None] + azimuth.sin()[..., None] * front[:, None]  # [B, V, 3]
    backward = elevation.cos()[..., None] * horizontal + elevation.sin()[..., None] * up[:, None]  # origin to camera
    forward = -backward
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up[:, None].expand_as(forward)), dim=-1)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=-2)  # [B, V, 3, 3]
    translation = torch.zeros_like(forward)
    translation[..., 2].fill_(config.camera_distance)
    return torch.cat([rotation, translation[..., None]], dim=-1)  # [B, V, 3, 4]


def _horizontal_axes(up: Tensor) -> tuple[Tensor, Tensor]:
    """Two unit vectors [B, 3] that span the plane below `up` [B, 3]."""
    axes = torch.eye(3, dtype=up.dtype, device=up.device)
    other = torch.where(up[:, :1].abs() < 0.9, axes[0], axes[2])  # [B, 3]
    front = torch.nn.functional.normalize(torch.linalg.cross(up, other), dim=-1)
    return torch.linalg.cross(front, up), front


def unit_depth(config: ModelConfig, projection: ops.Projection) -> Tensor:
    """Camera z [B, V, S, S] to [0, 1]: 1 at the near plane, 0 at the far plane and where nothing is."""
    near, far = config.camera_distance - 1, config.camera_distance + 1
    nearness = 1 - (projection.depth - near) / (far - near)
    if projection.soft_coverage is None:
        return torch.where(projection.index >= 0, nearness, 0)
    return projection.soft_coverage * nearness


def project(config: ModelConfig, points: Tensor, cameras: Tensor, mode: str) -> DepthMaps:
    """Unit depth maps of points [B, N, 3] from cameras [B, V, 3, 4]."""
    size = (config.image_size, config.image_size)
    projection = ops.project_points(
        points, cameras, intrinsics(config, points.device), size, radius=config.footprint_radius, mode=mode
    )
    return DepthMaps(unit_depth(config, projection), projection.pixels)


def smooth(images: Tensor) -> Tensor:
    """Fills pinholes of [B, V, S, S] by a 3x3 maximum, then softens edges by a 3x3 binomial filter (D 9)."""
    filled = torch.nn.functional.max_pool2d(images, 3, stride=1, padding=1)
    weights = images.new_tensor([1.0, 2.0, 1.0])
    kernel = (weights[:, None] * weights / 16).expand(images.shape[1], 1, 3, 3)
    return torch.nn.functional.conv2d(filled, kernel, padding=1, groups=images.shape[1])


def colorize(images: Tensor) -> Tensor:
    """Unit depth [B, 1, S, S] through a fixed blue-green-red map: [B, 3, S, S]; background stays 0 (table 8)."""
    peaks = 0.25 * torch.arange(3, 0, -1, dtype=images.dtype, device=images.device)  # of red, green and blue
    peaks = peaks[:, None, None]
    return (1.5 - 4 * (images - peaks).abs()).clamp(0, 1) * (images > 0)


def cells_of(config: ModelConfig, pixels: Tensor) -> Tensor:
    """The 2D token that each pixel position [..., 2] lies in, [...] int32, row by row; -1 outside the frame (3.3)."""
    column, row = (pixels // PATCH_SIZE).unbind(-1)
    cell = row * config.grid_size + column
    return torch.where(pixels[..., 0] >= 0, cell, -1).to(torch.int32)


def coarsen_cells(config: ModelConfig, cells: Tensor) -> Tensor:
    """Cells of `align_cells` x `align_cells` 2D tokens, from 2D token numbers; -1 stays -1 (D 12)."""
    step = config.align_cells
    if step == 1:
        return cells
    row, column = cells // config.grid_size, cells % config.grid_size
    coarse = row // step * math.ceil(config.grid_size / step) + column // step
    return torch.where(cells >= 0, coarse, -1).to(torch.int32)
