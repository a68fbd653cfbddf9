"""`python -m jointmae.part_seg`: part segmentation by an encoder that is trained further, with several seeds."""

from __future__ import annotations

from collections.abc import Sequence

from jointmae import cli
from jointmae.config import PartSegConfig
from jointmae.limits import require_valid_downstream

DESCRIPTION = """Fine-tune an encoder for part segmentation: several runs, mean IoU over clouds and over classes.
python -m jointmae.part_seg --checkpoint RUN --data SET_WITH_PARTS.h5 --num-points 2048
--checkpoint random trains from scratch. The same command again resumes; a folder, a table and one JSON for all runs."""


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    config = cli.parse(PartSegConfig(), argv, "jointmae.part_seg", DESCRIPTION)
    require_valid_downstream(config)
    from jointmae.downstream.runs import train_runs  # here and below, so that --help does not wait for torch
    from jointmae.downstream.segmentation import SegmentationTask
    from jointmae.downstream.splits import load_splits

    return train_runs(config, lambda one, device: SegmentationTask(one, load_splits(one, device)))


if __name__ == "__main__":
    cli.run(main)
