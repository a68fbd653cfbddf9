"""`python -m jointmae.data info PATH`: which layout a set has, and what is in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tyro.conf import Positional

from jointmae import cli
from jointmae.text import counted, printable

if TYPE_CHECKING:
    from jointmae.data.layouts.layout import Layout

DESCRIPTION = "Print which layout a data set has, its splits, clouds, points, classes and parts, and its bad files."
SHOWN_BAD_FILES = 5


@dataclass(frozen=True)
class InfoConfig:
    """Of which set."""

    path: Positional[str] = "furniture"
    """The path of a set, followed by ":VARIANT" where it has several; or "furniture"."""


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    config = cli.parse(InfoConfig(), argv, "jointmae.data info", DESCRIPTION)
    for line in describe(config.path):
        print(printable(line), flush=True)
    return 0


def describe(spec: str) -> Iterator[str]:
    """The lines that `main` prints. Reads all of the set, but keeps none of it; raises DataError as `load` does."""
    from jointmae.data.loading import layout_of

    layout = layout_of(spec)
    variant = f" ({layout.variant})" if layout.variant else ""
    yield f"{spec}: {layout.kind}{variant}, {counted(len(layout.classes), 'class', 'es')}, up {layout.up_axis}"
    for split in layout.splits:
        yield from _describe_split(layout, split)
    if layout.classes:
        yield f"  classes: {', '.join(layout.classes)}"
    if layout.source:
        yield f"  source: {layout.source}"
    if layout.licence:
        yield f"  licence: {layout.licence}"


def _describe_split(layout: Layout, split: str) -> Iterator[str]:
    import numpy as np

    from jointmae.data.layouts.layout import BadFile

    smallest, largest, num_clouds, num_labelled, num_bad_points, has_parts = 2**63 - 1, 0, 0, 0, 0, False
    bad_files = []
    for block in layout.blocks(split, skip_bad=True):
        if isinstance(block, BadFile):
            bad_files.append(f"    {block.name}: {block.what}")
            continue
        smallest, largest = min(smallest, int(block.sizes.min())), max(largest, int(block.sizes.max()))
        num_clouds += len(block)
        num_labelled += int((block.labels >= 0).sum())
        num_bad_points += int((~np.isfinite(block.points).all(axis=1)).sum())
        has_parts = has_parts or block.parts is not None
    points = counted(largest, "point") if smallest >= largest else f"{smallest:,} to {largest:,} points"
    parts = f", {counted(len(layout.part_names), 'part')}" if has_parts else ""
    bad_points = f", {counted(num_bad_points, 'point')} not finite" if num_bad_points else ""
    if num_clouds:
        yield f"  {split}: {counted(num_clouds, 'cloud')} x {points}, {num_labelled:,} labelled{parts}{bad_points}"
    if bad_files:
        yield f"  {split}: {counted(len(bad_files), 'bad file')}"
        yield from bad_files[:SHOWN_BAD_FILES]
