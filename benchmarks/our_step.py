"""A pre-training step as `jointmae.train` makes it, without the run around it: the one place here that knows how."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from jointmae import random, trainer
from jointmae.config import TrainConfig
from jointmae.data import PointClouds
from jointmae.model import JointMAE
from jointmae.optimizer import adamw


def our_step(config: TrainConfig, clouds: PointClouds, device: torch.device) -> Callable[[], list[float]]:
    """A function that makes one step a call and returns its losses; eager or compiled as `config.compile` says.

    Batches follow one another through the set in a random order; one larger than the set takes clouds again.
    """
    clouds = clouds.to(device)
    model = JointMAE(config.model, seed=config.seed).to(device).train()
    forward = torch.compile(model, fullgraph=True, dynamic=False) if config.compile == "on" else model
    optimizer = adamw(model, config)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")
    order = random.epoch_order(config.seed, 0, len(clouds), device)
    first = 0

    def step() -> list[float]:
        nonlocal first
        ids = order[torch.arange(first, first + config.batch_size, device=device) % len(clouds)]
        first += config.batch_size
        optimizer.zero_grad(set_to_none=True)
        points, up, draws = trainer.make_batch(config.model, config, clouds, ids, 0)
        with autocast:
            output = forward(points, up, draws)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf)
        optimizer.step()
        return torch.stack([output.loss, output.loss_3d, output.loss_2d, output.loss_cross]).detach().tolist()

    return step
