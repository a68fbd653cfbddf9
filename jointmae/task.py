"""What a run is for: pre-training, classification, part segmentation. `jointmae.trainer` trains any of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from jointmae.config import RunConfig
from jointmae.data import PointClouds
from jointmae.objective import Objective
from jointmae.run_folder import RunFolder

if TYPE_CHECKING:
    from jointmae.board import Board


class Task(ABC):
    """A config with its clouds: which model is trained on them, and what becomes of its weights."""

    keeps_best = False
    """Whether the weights of the epoch with the highest `score` are the result, not the last ones."""
    validates = False
    """Whether `validate` has anything to say."""
    draws = False
    """Whether `board` gives something to draw on."""
    saves_every_epoch = True
    """Whether each epoch ends with a checkpoint, not only every half minute."""

    def __init__(self, config: RunConfig, clouds: PointClouds) -> None:
        """`clouds` are those that steps are made of, on the device that is trained on."""
        self.config, self.clouds = config, clouds

    @property
    @abstractmethod
    def default_folder(self) -> Path:
        """The run's folder where --out does not name one."""

    @property
    def inputs(self) -> dict[str, Any]:
        """Sums of all that is read, and the like: with the config they say which run it is."""
        return {"data_sha256": self.clouds.sha256}

    @abstractmethod
    def describe(self) -> list[str]:
        """Lines for the terminal: what is about to be trained, and on what."""

    @abstractmethod
    def new_model(self) -> nn.Module:
        """The model before the first step, in float32 on the CPU."""

    @abstractmethod
    def objective(self, model: nn.Module) -> Objective:
        """What is minimised, for such a model, where it is."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Numbers for metrics.jsonl at the end of an epoch; none where nothing is held out. The model is left as it is.

        In the leading process alone.
        """
        return {}

    def score(self, mean_loss: float, validated: dict[str, float]) -> float:
        """How good an epoch was, the higher the better: its checkpoint is kept."""
        return -mean_loss

    def board(self, folder: RunFolder, num_steps: int, logged: int) -> Board | None:
        """For --tensorboard, for a run that goes on after the line of step `logged`."""
        return None

    @abstractmethod
    def finish(self, folder: RunFolder, model: nn.Module, epoch: int, chosen: bool) -> str:
        """Evaluates what the run has come to and writes it into its folder; returns the result as text.

        `model` is in evaluation mode, with the weights of `epoch` (1, 2, ...), which was `chosen` by its score or else
        is the last. In the leading process alone.
        """
