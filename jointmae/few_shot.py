"""`python -m jointmae.few_shot`: N-way K-shot classification by an encoder that is trained further."""

from __future__ import annotations

from collections.abc import Sequence

from jointmae import cli
from jointmae.config import FewShotConfig
from jointmae.limits import require_valid_downstream

DESCRIPTION = """Fine-tune an encoder on a few clouds of a few classes, many times: mean and deviation over draws.
python -m jointmae.few_shot --checkpoint runs/tiny-furniture-0 --ways 5 --shots 10 --runs 10
Every pair of --ways and --shots is a row. The same command again resumes; --checkpoint random is from scratch."""


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    config = cli.parse(FewShotConfig(), argv, "jointmae.few_shot", DESCRIPTION)
    require_valid_downstream(config)
    from jointmae.downstream.few_shot import few_shot  # here, so that --help does not wait for torch

    return few_shot(config)


if __name__ == "__main__":
    cli.run(main)
