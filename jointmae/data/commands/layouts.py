"""`python -m jointmae.data layouts`: the folder trees that are recognised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jointmae import cli

DESCRIPTION = "Print the folder tree of every layout that --data recognises."


@dataclass(frozen=True)
class LayoutsConfig:
    """It has no options."""


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    cli.parse(LayoutsConfig(), argv, "jointmae.data layouts", DESCRIPTION)
    from jointmae.data.layouts import LAYOUTS

    for layout in LAYOUTS:
        print(f"{layout.kind}\n{_indented(layout.tree)}\n")
    return 0


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())
