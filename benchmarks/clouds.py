"""The clouds that benchmarks run on: surfaces, as real ones are. In a uniform cube trees would look worse."""

from __future__ import annotations

import torch
from torch import Tensor


def objects(B: int, N: int, device: torch.device) -> Tensor:
    """Noisy shells of ellipsoids and faces of boxes, in random order, in the unit sphere: [B, N, 3]."""
    half = N // 2
    shell = torch.nn.functional.normalize(torch.randn(B, half, 3, device=device), dim=-1)
    shell = shell * (0.3 + 0.6 * torch.rand(B, 1, 3, device=device))
    box = torch.rand(B, N - half, 3, device=device) - 0.5
    axis = torch.randint(3, (B, N - half, 1), device=device)
    box = box.scatter(2, axis, 0.5 * box.gather(2, axis).sign()) * (0.5 + torch.rand(B, 1, 3, device=device))
    points = torch.cat([shell, box], dim=1) + 0.002 * torch.randn(B, N, 3, device=device)
    points = points[:, torch.randperm(N, device=device)]
    return (points / points.norm(dim=-1).amax(1)[:, None, None]).contiguous()


def groups(B: int, N: int, device: torch.device) -> Tensor:
    """Small neighbourhoods about their centre, as the loss compares them: [B, N, 3]."""
    return 0.1 * torch.randn(B, N, 3, device=device)


def scene(N: int, device: torch.device) -> Tensor:
    """Floor, walls and furniture of a hall of 20 x 15 x 4 metres: [1, N, 3]."""
    points = torch.rand(N, 3, device=device) * torch.tensor([20.0, 15.0, 4.0], device=device)
    x, y, z = points.unbind(-1)
    part = torch.randint(6, (N,), device=device)
    tops = 2 * (z / 2).floor() + 0.7
    z = torch.where(part <= 1, 0, torch.where(part == 4, tops, z))
    x = torch.where(part == 2, 0, x)
    y = torch.where(part == 3, 15, y)
    points = torch.stack([x, y, z], dim=-1)
    return (points + 0.005 * torch.randn(N, 3, device=device))[None]


def clouds(B: int, N: int, device: torch.device) -> Tensor:
    """Whichever of the three fits the size: [B, N, 3]."""
    if N >= 100_000:
        return torch.cat([scene(N, device) for _ in range(B)])
    return objects(B, N, device) if N > 64 else groups(B, N, device)
