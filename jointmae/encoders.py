"""An encoder by name: a run's folder, a file of weights, or "random", the untrained one of a preset."""

from __future__ import annotations

import hashlib
from pathlib import Path

from jointmae.errors import CheckpointError, DiskError
from jointmae.model import JointMAE
from jointmae.recipes import train_config

RANDOM = "random"


def load_encoder(checkpoint: str, preset: str, recipe: str, seed: int) -> JointMAE:
    """The model on the CPU, in evaluation mode; preset, recipe and seed are those of "random".

    Raises CheckpointError for a path where there is no trained model.
    """
    if checkpoint == RANDOM:
        return JointMAE(train_config(preset, recipe).model, seed=seed).eval()
    if not Path(checkpoint).exists():
        raise CheckpointError(
            f'{checkpoint}: no such run. Wanted: a run\'s folder, a model.safetensors, or "{RANDOM}".'
        )
    return JointMAE.from_pretrained(checkpoint)


def name_of(checkpoint: str, preset: str) -> str:
    """What a folder or a table calls it: the name of the run's folder, or "random-<preset>"."""
    if checkpoint == RANDOM:
        return f"{RANDOM}-{preset}"
    path = Path(checkpoint).resolve()
    folder = path.parent if path.suffix == ".safetensors" else path
    is_one_of_several = folder.name.startswith("seed-")  # as `jointmae.ablate` leaves them
    return f"{folder.parent.name}-{folder.name}" if is_one_of_several else folder.name


def sha256_of(checkpoint: str) -> str:
    """The sum of the file of weights; "random" for the untrained encoder, which preset, recipe and seed decide."""
    if checkpoint == RANDOM:
        return RANDOM
    path = Path(checkpoint)
    file = path if path.suffix == ".safetensors" else path / "model.safetensors"
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise DiskError(f"cannot read {file}: {error.strerror or error}") from error
