"""Pre-training from the command line: `python -m jointmae.train`, with no argument the demo on the embedded set."""

from __future__ import annotations

from collections.abc import Sequence

from jointmae import cli
from jointmae.config import TrainConfig
from jointmae.recipes import train_config

DESCRIPTION = """Pre-train Joint-MAE, then probe it with a linear SVM and write a report.
Without options: the tiny preset on the embedded furniture set, a few minutes of a laptop CPU.
The same command again resumes an unfinished run. Defaults below are those of the chosen --preset and --recipe."""


def parse_args(argv: Sequence[str]) -> TrainConfig:
    """The run that `argv` describes; preset and recipe set the defaults of all other options."""
    default = train_config(cli.option(argv, "preset", "tiny"), cli.option(argv, "recipe", "best"))
    return cli.parse(default, argv, "jointmae.train", DESCRIPTION)


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    config = parse_args(argv)
    from jointmae.pretraining import train  # here, so that --help does not wait for torch

    return train(config)


if __name__ == "__main__":
    cli.run(main)
