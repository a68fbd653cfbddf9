"""What the numbers of a config may be, and what it needs; free of torch. Checked once, at the start of a run."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from jointmae.config import (
    PATCH_SIZE,
    DownstreamConfig,
    FewShotConfig,
    FinetuneConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
)
from jointmae.errors import DiskError, UsageError

_DOWNSTREAM = DownstreamConfig()


class Rule(NamedTuple):
    """One option, and whether its value is one that a run can have."""

    option: str
    value: Any
    wanted: str
    holds: bool


def require_valid(config: TrainConfig) -> None:
    """Raises UsageError naming the first option whose value no run can have, and the values that it may have."""
    require_valid_run(config)
    require([Rule("--splits", config.splits, "names of splits, as in --splits train", bool(config.splits))])
    require_valid_model(config.model)
    if config.tensorboard and find_spec("tensorboard") is None:
        raise UsageError("--tensorboard needs a package that is not installed: pip install 'jointmae[tb]'")


def require_valid_run(config: RunConfig) -> None:
    """The same for what all runs have in common."""
    require(_training_rules(config))


def require_valid_model(model: ModelConfig) -> None:
    """The same for a model alone."""
    require([*_size_rules(model), *_objective_rules(model)])


def require_encoder(checkpoint: str, is_default: bool) -> None:
    """Raises UsageError for no encoder, or for a preset or recipe (not `is_default`) beside one that has its own."""
    if not checkpoint:
        raise UsageError('--checkpoint is missing: give a run\'s folder, a model.safetensors, or "random"')
    if checkpoint != "random" and not is_default:
        raise UsageError("--preset and --recipe are for --checkpoint random; a run has its own")


def require_place(json: str) -> None:
    """Raises DiskError if --json has nowhere to go: said before the work, not after it."""
    path = Path(json)
    if json and (path.is_dir() or not path.parent.is_dir()):
        what = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}: make it first"
        raise DiskError(f"--json {path} cannot be written: {what}")


def require_valid_downstream(config: DownstreamConfig) -> None:
    """The same for a run that trains an encoder further; what the encoder's config allows is seen when it is there."""
    require_encoder(config.checkpoint, (config.preset, config.recipe) == (_DOWNSTREAM.preset, _DOWNSTREAM.recipe))
    require_valid_run(config)
    few = {"--num-points": (config.num_points,), "--num-centers": config.num_centers}
    few |= {"--num-neighbors": config.num_neighbors}
    require(
        [
            *(
                Rule(name, values, "positive (or all 0: as in pre-training)", min(values) > 0 or not any(values))
                for name, values in few.items()
            ),
            Rule("--drop-path", config.drop_path, "at least 0 and below 1", 0 <= config.drop_path < 1),
            Rule("--dropout", config.dropout, "at least 0 and below 1", 0 <= config.dropout < 1),
            Rule("--val-fraction", config.val_fraction, "at least 0 and below 1", 0 <= config.val_fraction < 1),
            Rule("--runs", config.runs, "at least 1", config.runs >= 1),
            Rule(
                "--batch-size",
                config.batch_size,
                f"at least 2 for each of {config.accumulate} parts: batch norm cannot normalise a single cloud",
                config.batch_size >= 2 * config.accumulate,
            ),
        ]
    )
    if isinstance(config, FinetuneConfig):
        smoothing = config.label_smoothing
        require(
            [
                Rule("--label-smoothing", smoothing, "at least 0 and below 1", 0 <= smoothing < 1),
                Rule("--votes", config.votes, "at least 0 (0: no voting)", config.votes >= 0),
            ]
        )
    if isinstance(config, FewShotConfig):
        require(
            [
                Rule(
                    "--ways", config.ways, "numbers of classes, at least 2", bool(config.ways) and min(config.ways) >= 2
                ),
                Rule("--shots", config.shots, "numbers, at least 1", bool(config.shots) and min(config.shots) >= 1),
                Rule("--queries", config.queries, "at least 1", config.queries >= 1),
            ]
        )
    require_place(config.json)


def require(rules: list[Rule]) -> None:
    """The same for rules of one's own."""
    for rule in rules:
        if not rule.holds:
            value = " ".join(map(str, rule.value)) if isinstance(rule.value, tuple) else rule.value
            raise UsageError(f"{rule.option} must be {rule.wanted}, got {value if value != '' else 'nothing'}")


def _training_rules(config: RunConfig) -> list[Rule]:
    lowest, peak = config.min_lr, config.lr
    return [
        Rule("--data", config.data, 'paths of data sets, or "furniture"', bool(config.data) and all(config.data)),
        Rule("--epochs", config.epochs, "at least 1", config.epochs >= 1),
        Rule("--max-steps", config.max_steps, "at least 0 (0: no limit)", config.max_steps >= 0),
        Rule("--batch-size", config.batch_size, "at least 1", config.batch_size >= 1),
        Rule("--accumulate", config.accumulate, "at least 1", config.accumulate >= 1),
        Rule("--lr", peak, "positive", 0 < peak < math.inf),
        Rule("--min-lr", lowest, f"between 0 and --lr {peak:g}", 0 <= lowest <= peak),
        Rule("--weight-decay", config.weight_decay, "at least 0", 0 <= config.weight_decay < math.inf),
        Rule("--warmup-epochs", config.warmup_epochs, "at least 0", 0 <= config.warmup_epochs < math.inf),
        Rule("--betas", config.betas, "at least 0 and below 1", all(0 <= beta < 1 for beta in config.betas)),
        Rule("--clip-grad", config.clip_grad, "at least 0 (0: no clipping)", 0 <= config.clip_grad < math.inf),
        Rule("--seed", config.seed, "at least 0 and below 2^63", 0 <= config.seed < 2**63),
        Rule("--threads", config.threads, "at least 0 (0: torch's choice)", config.threads >= 0),
    ]


def _size_rules(model: ModelConfig) -> list[Rule]:
    fine, coarse = model.num_centers
    if model.center_ratio:
        fine, coarse = model.num_points // 8, model.num_points // 32
    k_fine, k_coarse = model.num_neighbors
    width, heads = model.embed_dim, model.num_heads
    return [
        Rule("--num-centers", model.num_centers, "fine >= coarse >= 4", fine >= coarse >= 4),
        Rule("--num-points", model.num_points, f"at least the {fine} fine centres", model.num_points >= fine),
        Rule(
            "--num-neighbors",
            model.num_neighbors,
            f"between 1 and the points ({model.num_points}) and fine centres ({fine}) that there are",
            1 <= k_fine <= model.num_points and 1 <= k_coarse <= fine,
        ),
        Rule(
            "--num-target-neighbors",
            model.num_target_neighbors,
            f"between 1 and --num-points {model.num_points}",
            1 <= model.num_target_neighbors <= model.num_points,
        ),
        Rule("--embed-dims", model.embed_dims, "positive", min(model.embed_dims) >= 1),
        Rule("--embed-dims", model.embed_dims, "three widths, the last a multiple of 4", width % 4 == 0),
        Rule("--num-layers", model.num_layers, "at least 1", model.num_layers >= 1),
        Rule("--num-decoder-layers", model.num_decoder_layers, "at least 1", model.num_decoder_layers >= 1),
        Rule("--num-heads", heads, f"a divisor of the width {width}", heads >= 1 and width % heads == 0),
        Rule("--mlp-ratio", model.mlp_ratio, f"at least 1/{width}", 1 <= model.mlp_ratio * width < math.inf),
        Rule(
            "--image-size",
            model.image_size,
            f"a positive multiple of {PATCH_SIZE}",
            model.image_size > 0 and model.image_size % PATCH_SIZE == 0,
        ),
        Rule("--align-cells", model.align_cells, "at least 1", model.align_cells >= 1),
    ]


def _objective_rules(model: ModelConfig) -> list[Rule]:
    low, high = model.elevation
    tokens = model.num_points // 32 if model.center_ratio else model.num_centers[1]
    if model.modality == "joint":
        tokens = min(tokens, model.num_2d_tokens)
    hides_some = 0 < model.mask_ratio < 1
    weights = {name: getattr(model, f"loss_weight_{name}") for name in ("3d", "2d", "cross")}
    return [
        Rule("--mask-ratio", model.mask_ratio, "above 0 and below 1", hides_some),
        Rule(
            "--mask-ratio",
            model.mask_ratio,
            f"low enough to leave one of {tokens} tokens visible",
            hides_some and math.ceil(model.mask_ratio * tokens) < tokens,
        ),
        Rule("--drop-path", model.drop_path, "at least 0 and below 1", 0 <= model.drop_path < 1),
        Rule("--group-scale", model.group_scale, "positive", 0 < model.group_scale < math.inf),
        Rule("--camera-distance", model.camera_distance, "above 1", 1 < model.camera_distance < math.inf),
        Rule("--elevation", model.elevation, "low <= high, between 0 and pi/2", 0 <= low <= high <= math.pi / 2),
        Rule(
            "--footprint-radius",
            model.footprint_radius,
            f"between 0 and --image-size {model.image_size}",
            0 <= model.footprint_radius <= model.image_size,
        ),
        Rule("--cross-views", model.cross_views, "at least 0", model.cross_views >= 0),
        *(
            Rule(f"--loss-weight-{name}", weight, "at least 0", 0 <= weight < math.inf)
            for name, weight in weights.items()
        ),
    ]
