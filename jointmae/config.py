"""What a model and a training run are made of: frozen dataclasses, free of torch, so that `--help` is instant.

Every choice that the paper leaves open is a field; "D n" is its row in docs/deviations.md, where the reasons are.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

PATCH_SIZE = 16  # pixels along the side of one 2D token: 4x4 patches, then two convolutions of stride 2 (section 3.1)

Scope = Literal["local", "global"]
Augmentation = Literal["scale+shift", "rotate", "scale+shift+rotate", "none"]


@dataclass(frozen=True)
class ModelConfig:
    """The architecture and its objective; the defaults are the `paper` preset."""

    num_points: int = 2048
    """Points of one cloud."""
    modality: Literal["joint", "3d"] = "joint"
    """"3d" drops the depth branch, L_2D and L_3D-2D: the Point-MAE-like baseline."""

    normalize_input: bool = True
    """Centre and scale into the unit sphere after augmentation (D 6)."""

    # 3D tokens (D 1-4)
    num_centers: tuple[int, int] = (256, 64)
    """Centres of the two grouping stages; the second number is the number of 3D tokens."""
    center_ratio: bool = False
    """Centres in proportion to the cloud (N/8, N/32 in the paper) instead of the fixed numbers."""
    num_neighbors: tuple[int, int] = (32, 8)
    """k of the two grouping stages."""
    embed_dims: tuple[int, int, int] = (96, 192, 384)
    """Widths of both modalities' stages; the last is the width C of the transformer."""
    point_norm: Literal["batch", "layer"] = "batch"
    """Norm in the mini-PointNets."""
    group_scale: float = 1.0
    """Factor on coordinates relative to a centre, in the input and in the target of the groups."""
    hierarchy_3d: bool = True
    """False: one grouping stage from points to tokens (table 7)."""

    # Depth map and 2D tokens (D 5-9, 21, 26)
    image_size: int = 224
    """Height and width of the depth map, in pixels; a multiple of 16."""
    camera_distance: float = 1.4
    """Distance of the camera from the centre of the unit sphere; near and far are 1 nearer and farther."""
    elevation: tuple[float, float] = (0.2 * math.pi, 0.4 * math.pi)
    """Range of the absolute elevation of a random view, in radians; its sign is random."""
    views: Literal["random", "fixed6", "fixed10"] = "random"
    """Random views, or one of the fixed ones around (and, with 6, above and below) the object."""
    depth_mode: Literal["zbuffer", "harmonic"] = "zbuffer"
    """How points that meet in a pixel are joined."""
    footprint_radius: int = 2
    """A point covers (2 r + 1)^2 pixels."""
    smooth_depth: bool = False
    """Fill small holes of the depth map by a 3x3 maximum and a Gaussian."""
    color_render: bool = False
    """Depth through a fixed 3-channel colour map ("render" in table 8)."""
    hierarchy_2d: bool = True
    """False: one linear layer from 16x16 pixels to a token (table 7)."""

    # Masking (D 10-12)
    mask_ratio: float = 0.75
    """Share of hidden tokens in each modality; the number of hidden ones is rounded up."""
    mask_coupling: Literal["independent", "aligned", "complement"] = "independent"
    """Depth tokens: drawn on their own, first those under visible centres, or first those that are not."""
    no_leak_3d: bool = False
    """Visible groups see visible points only."""
    no_leak_2d: bool = False
    """Hidden pixels are zeroed before every convolution."""

    # Joint encoder (D 13, 22, 23)
    num_layers: int = 12
    """Blocks of the joint encoder."""
    num_heads: int = 6
    """Attention heads of every block, a divisor of the width."""
    mlp_ratio: float = 4.0
    """Hidden width of an MLP over C."""
    drop_path: float = 0.1
    """Drop-path rate of the last block; it grows linearly from 0."""
    attention_2d_to_3d: Scope = "local"
    """What 2D queries see of 3D keys: aligned tokens, or all."""
    attention_3d_to_2d: Scope = "local"
    """What 3D queries see of 2D keys."""
    align_cells: int = 1
    """Side of an alignment cell in 2D tokens: 1 is the paper's rule, 2 joins tokens two by two."""
    position_every_block: bool = True
    """Add positions before every block, not only before the first."""
    position_2d: Literal["sincos", "learned"] = "sincos"
    """Positions of 2D tokens: fixed, or learned from the same start."""

    # Decoders (D 14, 23, 24)
    num_decoder_layers: int = 2
    """Blocks of the shared decoder."""
    shared_decoder: bool = True
    """False: the specific decoders read the encoder directly (table 7)."""
    decoder_attention: Scope = "global"
    """Attention of the shared decoder between modalities."""
    modality_token_in_decoder: bool = False
    """Add the modality tokens again before the decoders."""

    encoder_off: bool = False
    """Decoders get zeros for what the encoder says: what positions alone give away. For comparison, never for use."""

    # Losses (D 15-20)
    num_target_neighbors: int = 32
    """Points of a group to be predicted."""
    normalize_patches: bool = False
    """L_2D on patches of zero mean and unit variance."""
    cross_mode: Literal["soft", "zbuffer", "harmonic"] = "soft"
    """Rendering inside L_3D-2D; only "soft" passes gradients to x and y."""
    cross_views: int = 4
    """Views of L_3D-2D, the input's first, spread over the full turn; 0 is no cross loss."""
    cross_points: Literal["with_visible", "hidden"] = "with_visible"
    """Render predicted hidden groups together with the visible ones, or alone."""
    cross_target: Literal["groups", "points"] = "groups"
    """Target of L_3D-2D: the input's own groups (a perfect prediction costs 0), or all its points."""
    loss_weight_3d: float = 1.0
    """Weight of L_3D, the Chamfer distance of hidden groups."""
    loss_weight_2d: float = 1.0
    """Weight of L_2D, the squared error of hidden patches."""
    loss_weight_cross: float = 1.0
    """Weight of L_3D-2D, the squared error of the rendered prediction."""

    @property
    def embed_dim(self) -> int:
        """Width C of the transformer."""
        return self.embed_dims[-1]

    @property
    def grid_size(self) -> int:
        """2D tokens along one side of the depth map."""
        return self.image_size // PATCH_SIZE

    @property
    def num_2d_tokens(self) -> int:
        """2D tokens of one depth map."""
        return self.grid_size**2

    @property
    def image_channels(self) -> int:
        """Channels of the depth map."""
        return 3 if self.color_render else 1


@dataclass(frozen=True)
class RunConfig:
    """What all runs that train have in common. What decides the bytes of their results: `jointmae.run_folder`."""

    data: tuple[str, ...] = ("furniture",)
    """What to train on: "furniture" (ships with the package), or paths of sets in any layout that
    `python -m jointmae.data layouts` lists; several are joined."""
    bad_points: Literal["error", "drop"] = "error"
    """Points that are not finite end the run, or are left out and counted."""
    skip_bad: bool = False
    """Files that cannot be read are left out and counted."""
    out: str = ""
    """The run's folder; empty: one below runs/, named after what is trained, the data and the seed."""
    epochs: int = 300
    """Passes over the data; the learning rate reaches its lowest at the last."""
    max_steps: int = 0
    """Stop early after so many steps (0: never); the schedule stays that of `epochs`."""
    batch_size: int = 128
    """Clouds of one step, all processes together; no more than there are. The last clouds of an epoch, if they fill no
    batch, are left out; the next epoch has another order."""
    lr: float = 1e-3
    """Peak learning rate, for any batch size."""
    min_lr: float = 1e-6
    """Learning rate before the warm-up and at the end."""
    weight_decay: float = 0.05
    """On weights of two or more dimensions; none on biases, norms and tokens."""
    warmup_epochs: float = 10
    """Linear warm-up of the learning rate; fractions of an epoch count."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's moments."""
    clip_grad: float = 0.0
    """Largest norm of the gradient (0: no clipping)."""
    augment: Augmentation = "scale+shift"
    """Random scale and shift of every cloud, a random turn about its up axis, both, or the clouds as they are."""
    seed: int = 0
    """Of the initial weights and of every random choice."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ... ; auto takes a GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    """Matrix work in float32 or bfloat16 (geometry is always float32); auto is bf16 on a GPU, fp32 on a CPU. fp64, for
    comparing runs, is float64 everywhere."""
    accumulate: int = 1
    """Parts of a process's share of a batch, computed one after the other: for batches that do not fit into memory.
    Batch norm then normalises over each part."""
    auto_batch: bool = False
    """Compute a batch in more parts where memory is short, as many as it takes; not with shards over processes."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Of several processes, each holds all weights (DistributedDataParallel), or a shard of them (FSDP2)."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto is on for a GPU and off for a CPU."""
    cuda_graphs: bool = True
    """On a GPU, a compiled step is recorded and replayed, but with shards over processes."""
    threads: int = 0
    """CPU threads (0: torch's choice)."""
    resume: str = "auto"
    """auto: go on with an unfinished run of this config; never: refuse to; or the step-N folder to start from."""
    dry_run: bool = False
    """Print what would be trained and where, and stop."""
    evaluate: bool = True
    """Evaluation and report at the end."""


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """One pre-training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    preset: str = "tiny"
    """Size of the model: tiny (a laptop CPU), small, or paper."""
    recipe: str = "best"
    """Choices of the method: best (ours), paper (the paper's words, the family's habits), 3d-only (no depth maps)."""
    splits: tuple[str, ...] = ("train", "extra")
    """Splits of the data to train on; those that a file lacks are passed over."""
    tensorboard: bool = False
    """Curves, depth maps and clouds for TensorBoard in the run's folder while it goes on; needs jointmae[tb]."""


@dataclass(frozen=True)
class DownstreamConfig(RunConfig):
    """Runs that train an encoder further, with labels; each of `runs` has a seed and a folder of its own."""

    checkpoint: str = ""
    """What to start from: a run's folder, its model.safetensors, or "random" for the untrained encoder."""
    preset: str = "small"
    """Preset of the random encoder."""
    recipe: str = "best"
    """Recipe of the random encoder."""
    num_points: int = 0
    """Points of one cloud (0: as in pre-training)."""
    num_centers: tuple[int, int] = (0, 0)
    """Centres of the two grouping stages (0: as in pre-training)."""
    num_neighbors: tuple[int, int] = (0, 0)
    """k of the two grouping stages (0: as in pre-training)."""
    drop_path: float = 0.1
    """Drop-path rate of the last block; it grows linearly from 0."""
    dropout: float = 0.5
    """Share of the head's features that are left out in training."""
    val_fraction: float = 0.1
    """Share of each class of the training split that is held out to choose the epoch, where the set has no split "val";
    0: none is held out, and the last epoch counts."""
    paper_selection: bool = False
    """The family's habit: nothing is held out, and the epoch is chosen by the test split, which flatters the result."""
    runs: int = 3
    """Runs, with seeds from --seed on."""
    json: str = ""
    """Also write the result to this file."""


@dataclass(frozen=True)
class FinetuneConfig(DownstreamConfig):
    """Classification; the recipe is that of Point-MAE (docs/deviations.md C)."""

    batch_size: int = 32
    """Clouds of one step, all processes together; no more than there are."""
    lr: float = 5e-4
    """Peak learning rate, for any batch size."""
    clip_grad: float = 10.0
    """Largest norm of the gradient (0: no clipping)."""
    sampling: Literal["fps", "random"] = "fps"
    """Points of a large cloud: random ones of its 1.17 times as many farthest point samples, and the samples themselves
    in tests, as in the family; or random ones, as in pre-training, and the first ones in tests."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    votes: int = 10
    """Also classify each test cloud by the mean of so many augmented copies (0: do not)."""


@dataclass(frozen=True)
class FewShotConfig(FinetuneConfig):
    """N-way K-shot classification: small sets drawn from a large one, and as many runs."""

    epochs: int = 150
    """Passes over the shots; the learning rate reaches its lowest at the last."""
    val_fraction: float = 0.0
    """Nothing is held out of a handful of shots: the last epoch counts."""
    votes: int = 0
    """Also classify each test cloud by the mean of so many augmented copies (0: do not)."""
    runs: int = 10
    """Draws of each setting, with seeds from --seed on."""
    ways: tuple[int, ...] = (5, 10)
    """Classes of a draw; of several numbers each is run with each number of shots."""
    shots: tuple[int, ...] = (10, 20)
    """Training clouds of each class."""
    queries: int = 20
    """Test clouds of each class."""


@dataclass(frozen=True)
class PartSegConfig(DownstreamConfig):
    """Part segmentation; the recipe is that of Point-MAE (docs/deviations.md C)."""

    batch_size: int = 16
    """Clouds of one step, all processes together; no more than there are."""
    lr: float = 2e-4
    """Peak learning rate, for any batch size."""


RESUMABLE_CHANGES = frozenset(
    "out device threads resume dry_run evaluate tensorboard compile cuda_graphs accumulate auto_batch parallel "
    "runs json".split()
)
"""Fields of a config that may differ between a run and its continuation."""


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON types."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def model_config_from_dict(values: dict[str, Any]) -> ModelConfig:
    """The inverse of `to_dict`, for config.json. Raises ValueError for fields that this version does not know."""
    known = {f.name: f for f in dataclasses.fields(ModelConfig)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"unknown model fields {unknown}: written by a newer jointmae?")
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return ModelConfig(**fields)
