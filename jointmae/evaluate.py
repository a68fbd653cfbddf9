"""What a finished run is worth: linear SVM beside the untrained encoder, reconstruction beside the trivial one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from jointmae.config import TrainConfig
from jointmae.data import PointClouds, load, normalize_unit_sphere, splits_of
from jointmae.files import to_json, write_atomically
from jointmae.model import JointMAE, Reconstruction
from jointmae.model.joint_mae import Latent
from jointmae.model.losses import best_constant_patch
from jointmae.model.masking import draw, take
from jointmae.probe import ProbeResult, can_probe, linear_probe, table
from jointmae.run_folder import RunFolder

_MAX_CLOUDS = 256  # clouds of the reconstruction figures


@dataclass(frozen=True)
class ProbePair:
    """Linear SVM on one set: the trained encoder, and the same encoder before training."""

    data: str
    trained: list[ProbeResult]
    untrained: list[ProbeResult]


@dataclass(frozen=True)
class ReconstructionLosses:
    """Reconstruction of clouds with fixed views and masks, without augmentation."""

    data: str
    num_clouds: int
    held_out: bool  # False: these clouds were trained on, for want of a test split that was not
    loss_3d: float
    loss_2d: float
    loss_cross: float
    trivial_loss_3d: float  # of the best constant group: what a model gets that knows nothing of the cloud
    blind_loss_3d: float  # of the same decoders where the encoder says the same of every token: positions alone
    blind_loss_2d: float

    @property
    def against_trivial(self) -> str:
        """How `loss_3d` compares with the trivial one, in words that fit before "the best constant group's"."""
        if self.trivial_loss_3d == 0:  # every group is one point, many times over
            return "beside"
        ratio = self.loss_3d / self.trivial_loss_3d
        if ratio >= 2:
            return f"{ratio:.1f} times"
        return f"{abs(1 - ratio):.0%} {'below' if ratio <= 1 else 'ABOVE'}"


@dataclass(frozen=True)
class Evaluation:
    """All that the report says beside the curves."""

    probes: list[ProbePair]
    losses: ReconstructionLosses


def evaluate_run(folder: RunFolder, config: TrainConfig, model: JointMAE, clouds: PointClouds) -> str:
    """Probes, writes `evaluation.json`, `report.html` and the model card; returns the result as text."""
    from jointmae.report import write_model_card, write_report

    test_clouds = first_test_split(config, clouds.device)
    held_out = test_clouds is not None and "test" not in config.splits
    shown = clouds if test_clouds is None else test_clouds
    probes = [pair for name in config.data if (pair := _probe(name, model, config))]
    evaluation = Evaluation(probes, reconstruction_losses(model, shown, held_out))
    write_atomically(folder.path / "evaluation.json", to_json(dataclasses.asdict(evaluation)))
    write_report(folder, config, model, shown, evaluation)
    write_model_card(folder, config, evaluation, clouds)
    return summary(evaluation)


def first_test_split(config: TrainConfig, device: torch.device) -> PointClouds | None:
    """The test split of the first of --data that has one."""
    for name in config.data:
        if "test" in splits_of(name):
            return load(name, ("test",), device, config.bad_points, config.skip_bad)
    return None


def _probe(name: str, model: JointMAE, config: TrainConfig) -> ProbePair | None:
    """None where the set has too few labels to probe with."""
    if not {"train", "test"} <= set(splits_of(name)):
        return None
    train, test = (
        load(name, (split,), bad_points=config.bad_points, skip_bad=config.skip_bad) for split in ("train", "test")
    )
    if not can_probe(train, test):
        return None
    untrained = JointMAE(model.config, seed=config.seed).to(model.modality_3d.device).eval()
    return ProbePair(train.title, linear_probe(model, train, test), linear_probe(untrained, train, test))


@torch.no_grad()
def reconstruction_losses(model: JointMAE, clouds: PointClouds, held_out: bool) -> ReconstructionLosses:
    """Mean losses of `model` on up to 256 clouds, and the loss of the best constant group on the same groups."""
    outputs = [reconstruct(model, clouds, ids) for ids in torch.arange(min(len(clouds), _MAX_CLOUDS)).split(32)]
    blind = [without_encoder(model, output) for output in outputs]
    weights = torch.tensor([len(output.pred_groups) for output in outputs], dtype=torch.float32)
    weights /= weights.sum()

    def mean(outputs: list[Reconstruction], name: str) -> float:
        return float(sum(w * getattr(output, name).cpu() for w, output in zip(weights, outputs, strict=True)))

    scale = model.config.group_scale
    targets = [take(o.inputs.groups, o.inputs.mask_3d.ids_hidden).flatten(0, 1) for o in outputs]
    _, trivial = best_constant_patch(_at_most(torch.cat(targets) * scale, 2048))
    num_clouds = min(len(clouds), _MAX_CLOUDS)
    return ReconstructionLosses(
        data=clouds.title,
        num_clouds=num_clouds,
        held_out=held_out,
        loss_3d=mean(outputs, "loss_3d"),
        loss_2d=mean(outputs, "loss_2d"),
        loss_cross=mean(outputs, "loss_cross"),
        trivial_loss_3d=trivial,
        blind_loss_3d=mean(blind, "loss_3d"),
        blind_loss_2d=mean(blind, "loss_2d"),
    )


@torch.no_grad()
def without_encoder(model: JointMAE, output: Reconstruction) -> Reconstruction:
    """The same prediction where every visible token is the mean of all of `output`: decoders see positions alone.

    Hidden centres are given to the decoder, and where they lie says much of a shape (PCP-MAE). How much a decoder can
    learn from that is measured by training with `encoder_off`.
    """
    same = (tokens.mean((0, 1), keepdim=True).nan_to_num().expand_as(tokens) for tokens in output.latent)
    return model.reconstruct(Latent(*same), output.inputs)


def _at_most(values: Tensor, count: int) -> Tensor:
    """Up to `count` rows, evenly spread."""
    return values[:: max(1, -(-len(values) // count))]


@torch.no_grad()
def reconstruct(model: JointMAE, clouds: PointClouds, ids: Tensor, seed: int = 0) -> Reconstruction:
    """What the model makes of clouds `ids` [B] with a fixed view and fixed masks, in evaluation mode."""
    ids = ids.to(clouds.device)
    batch = clouds.select(ids).first(model.config.num_points)
    points = normalize_unit_sphere(batch.points) if model.config.normalize_input else batch.points
    dtype = model.modality_3d.dtype
    output: Reconstruction = model.eval()(points.to(dtype), batch.up.to(dtype), draw(model.config, seed, 0, ids))
    return output


def summary(evaluation: Evaluation) -> str:
    """The result for the terminal."""
    losses = evaluation.losses
    where = "held-out" if losses.held_out else "training"
    lines = [
        f"{where} L_3D {losses.loss_3d:.4f}, "
        f"{losses.against_trivial} the best constant group's {losses.trivial_loss_3d:.4f} "
        f"({losses.num_clouds} clouds of {losses.data})"
    ]
    for pair in evaluation.probes:
        lines.append(f"linear SVM on {pair.data}, trained encoder:\n{table(pair.trained)}")
        lines.append(f"the same encoder untrained:\n{table(pair.untrained)}")
    return "\n".join(lines)
