"""A pre-training step as `jointmae.train` makes it, without the run around it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from jointmae import random
from jointmae.config import TrainConfig
from jointmae.data import PointClouds
from jointmae.device import keep_freed_memory
from jointmae.model import JointMAE
from jointmae.pretraining import Pretraining
from jointmae.step import Step


def our_step(config: TrainConfig, clouds: PointClouds, device: torch.device) -> Callable[[], torch.Tensor]:
    """A function that makes one step a call and returns its losses; eager or compiled as `config.compile` says.

    Batches follow one another through the set in a random order; one larger than the set takes clouds again.
    """
    if device.type == "cpu":
        keep_freed_memory()
    clouds = clouds.to(device)
    step = Step(Pretraining(JointMAE(config.model, seed=config.seed).to(device).train(), config), clouds)
    order = random.epoch_order(config.seed, 0, len(clouds), device)
    first = 0

    def run() -> torch.Tensor:
        nonlocal first
        ids = order[torch.arange(first, first + config.batch_size, device=device) % len(clouds)]
        first += config.batch_size
        return step.run(ids, 0, config.lr)

    return run
