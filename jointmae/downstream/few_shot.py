"""All settings of a few-shot command, and all draws of each."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jointmae import trainer
from jointmae.config import FewShotConfig
from jointmae.data import PointClouds
from jointmae.downstream.classification import ClassificationTask
from jointmae.downstream.episodes import draw_episode
from jointmae.downstream.runs import Results, default_folder, publish, train_seeds
from jointmae.downstream.splits import Splits, load_splits


class FewShotTask(ClassificationTask):
    """One draw of one setting, in which `config.ways` and `config.shots` are single numbers."""

    config: FewShotConfig
    name = "few-shot classification"

    def __init__(self, config: FewShotConfig, splits: Splits) -> None:
        """Draws from `splits`. Raises UsageError where too few classes are large enough."""
        (ways,), (shots,) = config.ways, config.shots
        super().__init__(config, draw_episode(splits, ways, shots, config.queries, config.seed))

    def scores(self, model: nn.Module, clouds: PointClouds) -> dict[str, float]:
        """Accuracy alone: all classes have as many clouds."""
        return {"accuracy": super().scores(model, clouds)["accuracy"]}

    @property
    def protocol(self) -> dict[str, Any]:
        """With the setting."""
        (ways,), (shots,) = self.config.ways, self.config.shots
        return {**super().protocol, "setting": f"{ways}-way {shots}-shot", "queries": self.config.queries}


def few_shot(config: FewShotConfig) -> int:
    """Trains every draw of every setting, or goes on; prints and writes the result. Returns the exit code."""
    parent = Path(config.out) if config.out else default_folder(config)
    groups: list[Results] = []
    with trainer.session(config) as (device, world):
        with world.in_turn():
            splits = load_splits(config, device)
        for ways, shots in product(config.ways, config.shots):
            setting = replace(config, ways=(ways,), shots=(shots,))

            def make(one: FewShotConfig, device: torch.device) -> FewShotTask:
                return FewShotTask(one, splits)

            code, results = train_seeds(setting, parent / f"{ways}-way-{shots}-shot", device, world, make)
            if code:
                return code
            groups += [results] if results else []
        if groups:
            publish(config, parent, groups)
    return 0
