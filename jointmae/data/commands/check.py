"""`python -m jointmae.data check PATH`: whether a set is sound and complete, and where to get it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tyro.conf import Positional

from jointmae import cli
from jointmae.errors import UsageError
from jointmae.files import to_json, write_atomically
from jointmae.text import printable

DESCRIPTION = """Read all of a data set: bad files, points that are not finite, degenerate clouds, clouds that are
there twice, counts beside the official ones; and where to get the set, under which terms. The exit code is 3 where
training would refuse the set."""


@dataclass(frozen=True)
class CheckConfig:
    """Of which set."""

    path: Positional[str] = ""
    """The path of a set, followed by ":VARIANT" where it has several; or "furniture"."""
    json: str = ""
    """Also write all findings to this file."""


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    config = cli.parse(CheckConfig(), argv, "jointmae.data check", DESCRIPTION)
    if not config.path:
        raise UsageError("the path of a set is wanted, as in: python -m jointmae.data check modelnet40_ply_hdf5_2048")
    from jointmae.data.check import check
    from jointmae.data.check_print import report
    from jointmae.data.loading import layout_of

    findings = check(layout_of(config.path))
    if config.json:
        write_atomically(Path(config.json), to_json(asdict(findings)))
    for line in report(findings):
        print(printable(line), flush=True)
    return findings.exit_code
