"""The three losses (equations 5 to 7). B clouds, M hidden tokens, k points of a group, V views, S image side."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from jointmae import ops


def loss_3d(pred: Tensor, target: Tensor) -> Tensor:
    """L_3D: Chamfer distance (squared, both ways added, mean) of groups [B, M, k, 3]."""
    return ops.chamfer_distance(pred.flatten(0, 1), target.flatten(0, 1))


def loss_2d(pred: Tensor, target: Tensor, normalize: bool) -> Tensor:
    """L_2D: mean squared error of patches [B, M, pixels]; `normalize` gives each target zero mean, unit variance."""
    if normalize:
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        target = (target - mean) / (variance + 1e-6).sqrt()
    return F.mse_loss(pred, target)


def loss_cross(rendered: Tensor, target: Tensor) -> Tensor:
    """L_3D-2D: mean squared error of unit depth maps [B, V, S, S]."""
    return F.mse_loss(rendered, target)


def best_constant_patch(groups: Tensor, steps: int = 300) -> tuple[Tensor, float]:
    """The one group [k, 3] with the lowest mean L_3D to all of `groups` [n, k, 3], and that loss: what is trivial.

    A model whose loss is not below this one predicts nothing about the cloud at hand.
    """
    with torch.enable_grad():
        patch = groups[: max(1, len(groups) // 8)].mean(0) + 0.5 * groups[0]  # [k, 3], near the mean, not collapsed
        patch = patch.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([patch], lr=0.05 * float(groups.std()))
        best, best_loss = patch.detach().clone(), float("inf")
        for _ in range(steps):
            loss = ops.chamfer_distance(patch.expand_as(groups), groups)
            if loss.item() < best_loss:
                best, best_loss = patch.detach().clone(), loss.item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return best, best_loss
