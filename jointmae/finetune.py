"""`python -m jointmae.finetune`: classification by an encoder that is trained further, with several seeds."""

from __future__ import annotations

from collections.abc import Sequence

from jointmae import cli
from jointmae.config import FinetuneConfig
from jointmae.limits import require_valid_downstream

DESCRIPTION = """Fine-tune an encoder for classification: several runs, mean and standard deviation on the test split.
python -m jointmae.finetune --checkpoint runs/tiny-furniture-0
--checkpoint random trains from scratch. The same command again resumes; a folder, a table and one JSON for all runs."""


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    config = cli.parse(FinetuneConfig(), argv, "jointmae.finetune", DESCRIPTION)
    require_valid_downstream(config)
    from jointmae.downstream.classification import ClassificationTask  # here, so that --help does not wait for torch
    from jointmae.downstream.runs import train_runs
    from jointmae.downstream.splits import load_splits

    return train_runs(config, lambda one, device: ClassificationTask(one, load_splits(one, device)))


if __name__ == "__main__":
    cli.run(main)
