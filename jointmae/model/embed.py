"""Hierarchical tokenisation of a cloud and of its depth map (section 3.1, equation 2).

B clouds, N points, F fine centres, G coarse centres (the 3D tokens), k neighbours, P 2D tokens, S image side,
C channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jointmae import ops
from jointmae.config import PATCH_SIZE, ModelConfig
from jointmae.model.masking import num_3d_tokens, take

_FAR = 1e4  # hidden points are moved this far away, when visible groups may not see them


class Geometry(NamedTuple):
    """What farthest point sampling and kNN say of a cloud; no parameter is involved."""

    center_ids: Tensor  # [B, G] int64, which points are the coarse centres
    centers: Tensor  # [B, G, 3]
    fine_centers: Tensor  # [B, F, 3]; the first G are the coarse ones
    fine_neighbors: Tensor  # [B, F, k1] int64, points around each fine centre
    neighbors: Tensor  # [B, G, k2] int64, fine centres around each coarse one


def sample_geometry(config: ModelConfig, points: Tensor) -> Geometry:
    """Both stages of sampling and grouping of points [B, N, 3] (D 1-4)."""
    N = points.shape[1]
    G = num_3d_tokens(config, N)
    F = N // 8 if config.center_ratio else config.num_centers[0]
    fine_ids = ops.farthest_point_sample(points, F)  # [B, F]
    fine_centers = take(points, fine_ids)
    _, fine_neighbors = ops.knn(fine_centers, points, config.num_neighbors[0])
    centers = fine_centers[:, :G]  # a prefix of a farthest point sample is one itself
    _, neighbors = ops.knn(centers, fine_centers, config.num_neighbors[1])
    return Geometry(fine_ids[:, :G], centers, fine_centers, fine_neighbors, neighbors)


def target_neighbors(config: ModelConfig, points: Tensor, geometry: Geometry) -> Tensor:
    """The points [B, N, 3] around each coarse centre that are to be predicted: int64 [B, G, k] (D 15)."""
    if config.num_target_neighbors == config.num_neighbors[0]:
        return geometry.fine_neighbors[:, : geometry.centers.shape[1]]
    return ops.knn(geometry.centers, points, config.num_target_neighbors)[1]


def hide_points(points: Tensor, geometry: Geometry, visible: Tensor) -> Geometry:
    """Neighbourhoods without hidden points: those nearest to a centre that is not `visible` [B, G] (D 10)."""
    centers, fine_centers = geometry.centers, geometry.fine_centers
    k1, k2 = geometry.fine_neighbors.shape[2], geometry.neighbors.shape[2]
    return geometry._replace(
        fine_neighbors=_visible_neighbors(fine_centers, points, k1, centers, visible),
        neighbors=_visible_neighbors(centers, fine_centers, k2, centers, visible),
    )


def _visible_neighbors(queries: Tensor, points: Tensor, k: int, centers: Tensor, visible: Tensor) -> Tensor:
    """Nearest of the visible ones of `points` [B, N, 3]; where they are too few, the nearest one stands in again."""
    _, owner = ops.knn(points, centers, 1)  # [B, N, 1]
    hidden = ~visible.gather(1, owner[..., 0])  # [B, N]
    _, neighbors = ops.knn(queries, torch.where(hidden[..., None], _FAR, points), k)  # [B, M, k]
    is_hidden = take(hidden, neighbors.flatten(1)).view_as(neighbors)
    return torch.where(is_hidden, neighbors[..., :1], neighbors)


def group_points(points: Tensor, neighbors: Tensor, centers: Tensor) -> Tensor:
    """Neighbours' coordinates relative to their centre: [B, G, k, 3]."""
    return ops.group(points, neighbors) - centers[:, :, None]


class _NormReLU(nn.Module):
    """Batch norm or layer norm over the last axis of [..., C], then ReLU in place."""

    def __init__(self, kind: str, dim: int) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm1d(dim) if kind == "batch" else nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.flatten(0, -2)).relu_()  # before the view: in-place work on a view is copied backward
        return y.view_as(x)


class MiniPointNet(nn.Module):
    """A group of points with features to one token: shared MLP, maximum, joined with each point, MLP, maximum.

    A linear layer commutes with gathering, and one over joined vectors is a sum of two: so the first layer runs once
    per point instead of once per neighbour, and the maximum's half of the third once per group.
    """

    def __init__(self, in_dim: int, out_dim: int, norm: str) -> None:
        super().__init__()
        self.feature = nn.Linear(in_dim, in_dim, bias=False)
        self.offset = nn.Linear(3, in_dim)
        self.norm1 = _NormReLU(norm, in_dim)
        self.second = nn.Linear(in_dim, in_dim)
        self.local = nn.Linear(in_dim, out_dim, bias=False)
        self.overall = nn.Linear(in_dim, out_dim)
        self.norm2 = _NormReLU(norm, out_dim)
        self.fourth = nn.Linear(out_dim, out_dim)

    def forward(self, features: Tensor, neighbors: Tensor, offsets: Tensor) -> Tensor:
        """Features [B, N, C_in], neighbours [B, G, k], offsets [B, G, k, 3] -> tokens [B, G, C_out]."""
        x = ops.group(self.feature(features), neighbors).add_(self.offset(offsets))  # [B, G, k, C_in]
        x = self.second(self.norm1(x))
        overall = self.overall(_max(x)[:, :, None])  # [B, G, 1, C_out]
        x = self.fourth(self.norm2(self.local(x).add_(overall)))  # [B, G, k, C_out]
        return _max(x)


class _GroupMax(torch.autograd.Function):
    """The maximum over a group, [B, G, k, C] -> [B, G, C], whose gradient goes to the first of equal values.

    On a CPU `Tensor.max` reads the channels one by one, and takes four times as long forward as a pooling layer does;
    that one's own gradient takes twice as long as this.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        B, G, k, C = x.shape
        images = x.reshape(B * G, k, 1, C).permute(0, 3, 1, 2)  # [B G, C, k, 1], channels last
        values, indices = nn.functional.max_pool2d_with_indices(images, (k, 1))
        ctx.save_for_backward(indices.view(B, G, 1, C))
        ctx.k = k
        return values.view(B, G, C)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (indices,) = ctx.saved_tensors
        B, G, _, C = indices.shape
        return grad.new_zeros(B, G, ctx.k, C).scatter_(2, indices, grad[:, :, None])


def _max(x: Tensor) -> Tensor:
    maximum: Tensor = _GroupMax.apply(x) if x.device.type == "cpu" else x.max(dim=2).values  # type: ignore[no-untyped-call]
    return maximum


class PointEmbed(nn.Module):
    """Points to 3D tokens by two grouping stages (or by one: table 7)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        first, middle, last = config.embed_dims
        self.lift = nn.Linear(3, first)
        if config.hierarchy_3d:
            self.fine = MiniPointNet(first, middle, config.point_norm)
            self.coarse = MiniPointNet(middle, last, config.point_norm)
        else:
            self.single = MiniPointNet(first, last, config.point_norm)

    def forward(self, points: Tensor, geometry: Geometry) -> Tensor:
        """Points [B, N, 3] -> tokens [B, G, C]."""
        scale = self.config.group_scale
        x = self.lift(points)  # [B, N, C_1]
        if not self.config.hierarchy_3d:
            G = geometry.centers.shape[1]
            nearest = geometry.fine_neighbors[:, :G]
            offsets = scale * group_points(points, nearest, geometry.centers)
            single: Tensor = self.single(x, nearest, offsets)
            return single
        offsets = scale * group_points(points, geometry.fine_neighbors, geometry.fine_centers)
        x = self.fine(x, geometry.fine_neighbors, offsets)  # [B, F, C_2]
        offsets = scale * group_points(geometry.fine_centers, geometry.neighbors, geometry.centers)
        tokens: Tensor = self.coarse(x, geometry.neighbors, offsets)
        return tokens


class _DownConv(nn.Module):
    """3x3 convolution of stride 2, norm over channels, GELU (D 26)."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, out_dim, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x).permute(0, 2, 3, 1))  # [B, H/2, W/2, C_out]
        return nn.functional.gelu(x).permute(0, 3, 1, 2)


class DepthEmbed(nn.Module):
    """Depth map to 2D tokens: 4x4 patches through a linear layer, then two convolutions (or one layer: table 7)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.grid_size = config.grid_size
        channels = config.image_channels
        first, middle, last = config.embed_dims
        stages: list[nn.Module] = [nn.Conv2d(channels, last, PATCH_SIZE, stride=PATCH_SIZE)]
        if config.hierarchy_2d:  # a convolution whose stride is its size is the linear layer on patches
            stages = [nn.Conv2d(channels, first, 4, stride=4), _DownConv(first, middle), _DownConv(middle, last)]
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """Images [B, channels, S, S] -> tokens [B, P, C].

        With `visible` [B, P], what lies under hidden tokens is zeroed before every stage (D 11, ConvMAE).
        """
        x = images
        for stage in self.stages:
            if visible is not None:
                x = x * self._spread(visible, x.shape[-1])
            x = stage(x)
        return x.flatten(2).transpose(1, 2)

    def _spread(self, visible: Tensor, side: int) -> Tensor:
        """Flags of tokens [B, P] as a map [B, 1, side, side]."""
        grid = visible.view(-1, 1, self.grid_size, self.grid_size)
        factor = side // self.grid_size
        return grid.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)


def patches_of(images: Tensor) -> Tensor:
    """Images [B, channels, S, S] as [B, P, channels x 16 x 16], row by row: the pixels behind each 2D token."""
    B, channels, S, _ = images.shape
    grid = S // PATCH_SIZE
    x = images.view(B, channels, grid, PATCH_SIZE, grid, PATCH_SIZE)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(B, grid**2, channels * PATCH_SIZE**2)


def image_of(patches: Tensor, channels: int) -> Tensor:
    """The inverse of `patches_of`."""
    B, P, _ = patches.shape
    grid = int(P**0.5)
    x = patches.view(B, grid, grid, channels, PATCH_SIZE, PATCH_SIZE)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(B, channels, grid * PATCH_SIZE, grid * PATCH_SIZE)
