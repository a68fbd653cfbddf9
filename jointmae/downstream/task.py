"""What all downstream tasks share: where the encoder comes from, how an epoch is chosen, what a result says."""

from __future__ import annotations

import time
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from jointmae import encoders
from jointmae.config import DownstreamConfig, ModelConfig, to_dict
from jointmae.data import PointClouds
from jointmae.downstream.splits import Splits
from jointmae.files import to_json, write_atomically
from jointmae.limits import require_valid_model
from jointmae.model import JointMAE, PointEncoder
from jointmae.run_folder import RunFolder, environment
from jointmae.task import Task
from jointmae.text import spoken


class DownstreamTask(Task):
    """An encoder with a head on it, trained on labels."""

    config: DownstreamConfig
    name: str
    """As a result calls it."""
    score_name: str
    """The number of `scores` that chooses the epoch."""
    saves_every_epoch = False

    def __init__(self, config: DownstreamConfig, splits: Splits) -> None:
        """Raises CheckpointError where there is no encoder, UsageError where it cannot be what is asked for."""
        super().__init__(config, splits.train)
        self.val, self.test = splits.val, splits.test
        self.keeps_best = self.validates = splits.val is not None or config.paper_selection
        model = encoders.load_encoder(config.checkpoint, config.preset, config.recipe, config.seed)
        self.model_config = adapted(model.config, config)
        self._weights: dict[str, Tensor] = model.state_dict()

    @property
    def default_folder(self) -> Path:
        """Not used: a command names a folder for each of its runs."""
        return Path(self.config.out)

    @property
    def inputs(self) -> dict[str, Any]:
        """With the encoder's sum, and what it takes to build the model again."""
        sha256 = encoders.sha256_of(self.config.checkpoint)
        return {**super().inputs, "checkpoint_sha256": sha256, "model": to_dict(self.model_config), **self.names}

    @property
    @abstractmethod
    def names(self) -> dict[str, tuple[str, ...]]:
        """What the outputs of the model are called, by kind."""

    def encoder(self) -> PointEncoder:
        """As it is before the first step."""
        model = JointMAE(self.model_config)
        model.load_state_dict(self._weights)
        return model.point_encoder()

    def describe(self) -> list[str]:
        """The task, the encoder, and how many clouds choose and test."""
        config = self.config
        parameters = sum(p.numel() for p in self.new_model().parameters())
        encoder = config.checkpoint if config.checkpoint != encoders.RANDOM else f"{config.preset}, untrained"
        val = "" if self.val is None else f"{len(self.val):,} clouds choose the epoch, "
        return [
            f"jointmae: {self.name} ({parameters / 1e6:.2f} M parameters), encoder {encoder}, seed {config.seed}",
            f"held out  {val}{len(self.test):,} test",
        ]

    # ---- choosing the epoch ----

    @abstractmethod
    def scores(self, model: nn.Module, clouds: PointClouds) -> dict[str, float]:
        """How good a model is on clouds, in numbers between 0 and 1; the model is left as it was."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Scores on what was held out, or with --paper-selection on the test split."""
        prefix, clouds = ("val", self.val) if self.val is not None else ("test", self.test)
        return {f"{prefix}_{name}": value for name, value in self.scores(model, clouds).items()}

    def score(self, mean_loss: float, validated: dict[str, float]) -> float:
        """The first epoch with the highest score is chosen."""
        if not validated:
            return super().score(mean_loss, validated)
        return next(value for name, value in validated.items() if name.endswith(f"_{self.score_name}"))

    @property
    def selection(self) -> str:
        """By what the epoch is chosen, as every row of a table says it."""
        if self.config.paper_selection:
            return "best of TEST"
        return "last" if self.val is None else "best of validation"

    # ---- the result ----

    def finish(self, folder: RunFolder, model: nn.Module, epoch: int, chosen: bool) -> str:
        """Reads the test split, for the only time; writes `result.json`."""
        config = self.config
        selection = self.selection if chosen else "last"
        record = {
            "task": self.name,
            "data": self.test.title,
            "encoder": encoders.name_of(config.checkpoint, config.preset),
            "seed": config.seed,
            "test": {**self.scores(model, self.test), **self.more_scores(model)},
            "selection": selection,
            "epoch": epoch,
            "epochs": config.epochs,
            "num_train": len(self.clouds),
            "num_val": 0 if self.val is None else len(self.val),
            "num_test": len(self.test),
            **self.protocol,
            **self.details(model),
            "config": to_dict(config),
            "inputs": self.inputs,
            "environment": environment(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        write_atomically(folder.path / "result.json", to_json(record))
        numbers = ", ".join(f"{spoken(name)} {value:.1%}" for name, value in record["test"].items())
        return f"test      {numbers} (epoch {epoch} of {config.epochs}, {selection})"

    @property
    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """What else decides a score, for every row of a table: augmentation, pooling and the like."""

    def more_scores(self, model: nn.Module) -> dict[str, float]:
        """On the test split, at the end alone."""
        return {}

    def details(self, model: nn.Module) -> dict[str, Any]:
        """On the test split, class by class."""
        return {}


def adapted(model: ModelConfig, config: DownstreamConfig) -> ModelConfig:
    """The encoder's config for a downstream run. Raises UsageError for what cannot be."""
    model = replace(
        model,
        num_points=config.num_points or model.num_points,
        num_centers=config.num_centers if any(config.num_centers) else model.num_centers,
        num_neighbors=config.num_neighbors if any(config.num_neighbors) else model.num_neighbors,
        drop_path=config.drop_path,
    )
    require_valid_model(model)
    return model
