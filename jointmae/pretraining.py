"""Pre-training: augmentation, projection, masked reconstruction, and its result. B clouds of a batch, N points."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from jointmae import trainer
from jointmae.config import TrainConfig
from jointmae.data import PointClouds, concat, load, splits_of
from jointmae.data.augment import augment
from jointmae.distributed import World
from jointmae.errors import UsageError
from jointmae.limits import require_valid
from jointmae.model import JointMAE
from jointmae.model.masking import draw
from jointmae.objective import Losses, Objective, spread_of
from jointmae.run_folder import RunFolder, runs_folder
from jointmae.task import Task

if TYPE_CHECKING:
    from jointmae.board import Board


def train(config: TrainConfig) -> int:
    """Trains, or goes on, or finds that all is done; returns the exit code."""
    require_valid(config)
    with trainer.session(config) as (device, world):
        return trainer.run(lambda: PretrainingTask(config, load_training_data(config, device)), world)


def load_training_data(config: TrainConfig, device: torch.device) -> PointClouds:
    """The clouds of all --data, joined, on the device. Raises UsageError for a set that has none of --splits."""
    sets = []
    for name in config.data:
        splits = [split for split in config.splits if split in splits_of(name)]
        if not splits:
            there, wanted = ", ".join(splits_of(name)), " ".join(config.splits)
            raise UsageError(f"--data {name} has none of --splits {wanted}; it has {there}")
        sets.append(load(name, splits, bad_points=config.bad_points, skip_bad=config.skip_bad))
    return (sets[0] if len(sets) == 1 else concat(sets)).to(device)


def default_folder(config: TrainConfig) -> Path:
    """runs/<preset>-<data>-<seed>, with the recipe where it is not the default one."""
    preset = config.preset if config.recipe == "best" else f"{config.preset}-{config.recipe}"
    return runs_folder(preset, config)


class PretrainingTask(Task):
    """A `JointMAE` learns without labels; its encoder is then probed."""

    config: TrainConfig

    def __init__(self, config: TrainConfig, clouds: PointClouds) -> None:
        super().__init__(config, clouds)
        self.draws = config.tensorboard

    @property
    def default_folder(self) -> Path:
        """runs/<preset>-<data>-<seed>."""
        return default_folder(self.config)

    def describe(self) -> list[str]:
        """Preset, size, recipe."""
        config = self.config
        with torch.device("meta"):
            parameters = sum(p.numel() for p in JointMAE(config.model).parameters())
        lines = [f"jointmae: {config.preset} ({parameters / 1e6:.2f} M parameters), recipe {config.recipe}"]
        there, wanted = self.clouds.points.shape[1], config.model.num_points
        if there < wanted:
            lines.append(f"note: clouds have {there:,} points, --num-points {wanted} repeats them")
        return lines

    def new_model(self) -> JointMAE:
        """Drawn with the seed."""
        return JointMAE(self.config.model, seed=self.config.seed)

    def objective(self, model: nn.Module) -> Objective:
        """The three losses."""
        return Pretraining(model, self.config)

    def board(self, folder: RunFolder, num_steps: int, logged: int) -> Board | None:
        """Curves, depth maps and clouds."""
        if not self.config.tensorboard:
            return None
        from jointmae.board import Board  # TensorBoard, scikit-learn and matplotlib load only when they are needed

        return Board(folder.path, self.config, self.clouds, num_steps, logged)

    def finish(self, folder: RunFolder, model: nn.Module, epoch: int, chosen: bool) -> str:
        """Linear SVM, reconstruction, report and model card."""
        from jointmae.evaluate import evaluate_run  # scikit-learn and matplotlib load only when they are needed

        return evaluate_run(folder, self.config, cast(JointMAE, model), self.clouds)


class Pretraining(Objective):
    """The three losses of a `JointMAE`."""

    config: TrainConfig
    names = ("loss", "loss_3d", "loss_2d", "loss_cross")
    shown = {"loss_3d": "L_3D", "loss_2d": "L_2D", "loss_cross": "L_3D-2D"}

    @property
    def weights(self) -> dict[str, float]:
        """Those of equation 7."""
        return {name: getattr(self.config.model, name.replace("loss_", "loss_weight_")) for name in self.names[1:]}

    def batch(self, clouds: PointClouds, ids: Tensor, epoch: int) -> tuple[Tensor, ...]:
        """Filled on the device: to take a number there would be to wait for it."""
        points = clouds.batch(ids, self.config.model.num_points, self.config.seed, epoch)
        return points, clouds.up[ids], ids, torch.full((), epoch, dtype=torch.int64, device=clouds.device)

    def forward(self, *batch: Tensor) -> Losses:
        """Points [B, N, 3] and up axes [B, 3] of clouds `ids` int64 [B], in an epoch, int64 []."""
        points, up, ids, epoch = batch
        config = self.config
        points = augment(config.augment, points, up, ids, epoch, config.seed, config.model.normalize_input)
        points = points.to(self.dtype)
        draws = draw(config.model, config.seed, epoch, ids)
        model: Any = self.model
        with self.autocast():
            output = model(points, up.to(self.dtype), draws)
        features = output.latent.tokens_3d.detach().double().mean(1)  # [B, C] of visible tokens
        details = {"features": features, "pairs": model.valid_pairs(output.inputs)}
        return Losses((output.loss, output.loss_3d, output.loss_2d, output.loss_cross), details)

    def diagnostics(self, details: dict[str, Tensor], world: World) -> dict[str, float]:
        """How much features differ between clouds, and how many 2D-3D pairs a cloud has (D 12)."""
        found = {"feature_std": spread_of(details["features"], world)}
        if self.config.model.modality == "joint":
            pairs = details["pairs"].double()
            sums = torch.stack([torch.ones_like(pairs), pairs, (pairs == 0).double()]).sum(1)
            count, total, without = world.sum(sums).tolist()
            found |= {"valid_pairs": total / count, "without_pair": without / count}
        return found
