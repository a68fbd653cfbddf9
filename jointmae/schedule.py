"""The learning rate as a function of the step alone, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jointmae.config import RunConfig


@dataclass(frozen=True)
class Schedule:
    """Steps of a run and their learning rate: linear warm-up, then half a cosine."""

    config: RunConfig
    steps_per_epoch: int

    @property
    def num_steps(self) -> int:
        """Steps of the whole run; `max_steps` stops earlier without changing the schedule."""
        full = self.config.epochs * self.steps_per_epoch
        return min(full, self.config.max_steps) if self.config.max_steps > 0 else full

    def lr(self, step: int) -> float:
        """The learning rate of step 0, 1, ..."""
        config = self.config
        warmup = round(config.warmup_epochs * self.steps_per_epoch)
        if step < warmup:
            return config.min_lr + (config.lr - config.min_lr) * (step + 1) / warmup
        total = config.epochs * self.steps_per_epoch
        progress = (step - warmup) / max(total - warmup, 1)
        return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
