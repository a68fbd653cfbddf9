"""Whether our step and the naive one compute the same, and how much that is."""

from __future__ import annotations

from functools import cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.naive_step import NaiveJointMAE
from jointmae import ops
from jointmae.config import ModelConfig, TrainConfig
from jointmae.data import load
from jointmae.model import JointMAE
from jointmae.model.masking import draw
from jointmae.ops import reference

LOSSES = ("loss", "loss_3d", "loss_2d", "loss_cross")


def losses_and_gradient(model: nn.Module, points: Tensor, up: Tensor, draws: Any, bf16: bool) -> dict[str, float]:
    """The losses of a batch and the norm of their gradient, which stays in the model."""
    with torch.autocast(points.device.type, torch.bfloat16, enabled=bf16):
        output = model(points, up, draws)
    output.loss.backward()
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    return {**{name: getattr(output, name).item() for name in LOSSES}, "gradient": norm.item()}


def check_agreement(
    config: TrainConfig, device: torch.device, tolerance: float, dtype: torch.dtype = torch.float32
) -> str:
    """Raises AssertionError unless both compute the same of the same weights, clouds and random numbers."""
    clouds, ids = load("furniture", device=device), torch.arange(min(config.batch_size, 8), device=device)
    points = clouds.batch(ids, config.model.num_points, config.seed, 0).to(dtype)
    draws = draw(config.model, config.seed, 0, ids)
    ours = JointMAE(config.model, seed=config.seed).to(device, dtype).train()
    batch = (points, clouds.up[ids].to(dtype), draws, config.precision == "bf16")
    naive = NaiveJointMAE(ours)  # before there are gradients, which it would copy
    expected, found = (losses_and_gradient(model, *batch) for model in (ours, naive))
    errors = {name: abs(found[name] / value - 1) for name, value in expected.items()}
    worst = max(errors, key=lambda name: errors[name])
    assert errors[worst] <= tolerance, f"{worst}: naive {found[worst]}, ours {expected[worst]}"
    return f"error {errors[worst]:.0e}"


@cache
def counted_gflops(config: ModelConfig) -> tuple[float, float]:
    """GFLOP a cloud of our step and of the naive one: matrix products and convolutions, forward and backward."""
    clouds, ids = load("furniture"), torch.arange(2)
    points, draws = clouds.batch(ids, config.num_points, 0, 0), draw(config, 0, 0, ids)
    ours = JointMAE(config).train()
    gflops = []
    for model in (ours, NaiveJointMAE(ours)):
        with (
            sdpa_kernel(SDPBackend.MATH),  # products that the counter knows
            mock.patch.object(ops, "local_aligned_attention", _dense_attention),
            FlopCounterMode(display=False) as counter,
        ):
            losses_and_gradient(model, points, clouds.up[ids], draws, bf16=False)
        gflops.append(1e-9 * counter.get_total_flops() / len(ids))
    return gflops[0], gflops[1]


def _dense_attention(q: Tensor, k: Tensor, v: Tensor, alignment: ops.Alignment) -> Tensor:
    return reference.local_aligned_attention(q, k, v, alignment.cell, alignment.num_3d, alignment.scheme)
