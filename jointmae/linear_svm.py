"""`python -m jointmae.linear_svm`: the linear SVM accuracy of a trained or an untrained encoder on a labelled set."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jointmae import cli
from jointmae.config import to_dict
from jointmae.errors import DataError, UsageError
from jointmae.limits import require_encoder, require_place

DESCRIPTION = """Linear SVM on frozen features: C by 5-fold cross-validation on train, accuracy on test.
--checkpoint random is the untrained encoder, the floor that every other number must be read against."""


@dataclass(frozen=True)
class LinearSVMConfig:
    """Which encoder, and on what."""

    checkpoint: str = ""
    """A run's folder, its model.safetensors, or "random" for the untrained encoder."""
    data: str = "furniture"
    """ "furniture", or the path of a set with labelled train and test splits, in any layout that
    `python -m jointmae.data layouts` lists."""
    bad_points: Literal["error", "drop"] = "error"
    """Points that are not finite are an error, or are left out and counted."""
    skip_bad: bool = False
    """Files that cannot be read are left out and counted."""
    preset: str = "small"
    """Preset of the random encoder."""
    recipe: str = "best"
    """Recipe of the random encoder."""
    seed: int = 0
    """Seed of the random encoder."""
    json: str = ""
    """Also write the results to this file."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""
    threads: int = 0
    """CPU threads (0: torch's choice)."""


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    config = cli.parse(LinearSVMConfig(), argv, "jointmae.linear_svm", DESCRIPTION)
    require_valid(config)
    import torch  # here and below, so that --help does not wait for it

    from jointmae import data
    from jointmae.device import choose_device
    from jointmae.encoders import load_encoder
    from jointmae.probe import ENOUGH_LABELS, can_probe, linear_probe, table

    if config.threads > 0:
        torch.set_num_threads(config.threads)
    model = load_encoder(config.checkpoint, config.preset, config.recipe, config.seed)
    model = model.to(choose_device(config.device))
    if not {"train", "test"} <= set(data.splits_of(config.data)):
        wanted = "groups train and test with labels, or a bool dataset test [S] beside points and label"
        raise DataError(config.data, "", f"a linear SVM needs a train and a test split, got one: wanted {wanted}")
    train, test = (
        data.load(config.data, (split,), bad_points=config.bad_points, skip_bad=config.skip_bad)
        for split in ("train", "test")
    )
    print(f"{config.checkpoint} on {train.describe()}; test {len(test):,}", flush=True)
    if not can_probe(train, test):
        raise DataError(config.data, "labels", f"got too few, wanted {ENOUGH_LABELS}")
    results = linear_probe(model, train, test)
    print(table(results))
    if config.json:
        from jointmae.files import to_json, write_atomically
        from jointmae.run_folder import environment

        record = {
            "results": [dataclasses.asdict(result) for result in results],
            "config": to_dict(config),
            "model": to_dict(model.config),
            "data_sha256": train.sha256,
            "environment": environment(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        write_atomically(Path(config.json), to_json(record))
    return 0


def require_valid(config: LinearSVMConfig) -> None:
    """Raises UsageError for an option that cannot be meant, DiskError if --json has nowhere to go."""
    defaults = LinearSVMConfig()
    require_encoder(config.checkpoint, (config.preset, config.recipe) == (defaults.preset, defaults.recipe))
    if config.threads < 0:
        raise UsageError(f"--threads must be at least 0 (0: torch's choice), got {config.threads}")
    if not 0 <= config.seed < 2**63:
        raise UsageError(f"--seed must be at least 0 and below 2^63, got {config.seed}")
    require_place(config.json)


if __name__ == "__main__":
    cli.run(main)
