"""The findings of `jointmae.data.check` as lines for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from jointmae.data.check import Findings, Listing, SplitFindings
from jointmae.text import counted

_MAX_LINES = 10
"""Examples of each kind that are printed; --json has more."""


def report(findings: Findings) -> Iterator[str]:
    """What there is, what is wrong, what to know, and where the set comes from."""
    variant = f", variant {findings.variant}" if findings.variant else ""
    classes = counted(len(findings.classes), "class", "es")
    yield f"{findings.path}: {findings.kind}{variant}, {classes}, up {findings.up_axis}"
    for split in findings.splits:
        yield f"  {_split(split)}"
    yield from _wrong(findings)
    yield from _worth_knowing(findings)
    yield "Training takes this set." if findings.usable else "Training refuses this set as it is."
    for name, text in (("Source", findings.source), ("Where to get it", findings.get), ("Terms", findings.terms)):
        if text:
            yield f"{name}: {text}"


def _split(split: SplitFindings) -> str:
    low, high = split.num_points
    points = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    unlabelled = f", {split.unlabelled:,} without label" if split.unlabelled else ""
    listed = "" if split.listed in (None, split.num_clouds) else f" of {split.listed:,}"
    radius = ""
    if split.radius is not None:
        smallest, median, largest = split.radius
        radius = f", radius {smallest:.3g} to {largest:.3g}, median {median:.3g}"
    repeated = f", {split.repeated:.1%} of points repeated" if split.repeated >= 0.0005 else ""
    return f"{split.name}: {split.num_clouds:,}{listed} clouds x {points} points{unlabelled}{radius}{repeated}"


def _wrong(findings: Findings) -> Iterator[str]:
    yield from _listing(findings.bad_files, "files cannot be read", lambda e: f"{e['name']}: {e['what']}")
    title = "clouds have points that are NaN or infinite"
    yield from _listing(findings.not_finite, title, lambda e: f"{e['split']}, {e['name']}: {_rows(e)}")


def _rows(example: dict[str, Any]) -> str:
    more = ", ..." if example["count"] > len(example["rows"]) else ""
    return f"{example['count']:,} points, in rows {', '.join(map(str, example['rows']))}{more}"


def _worth_knowing(findings: Findings) -> Iterator[str]:
    title = "clouds have no volume"
    yield from _listing(findings.degenerate, title, lambda e: f"{e['split']}, {e['name']}: {e['what']}")
    pairs = ", ".join(f"{count:,} of {pair}" for pair, count in findings.duplicates_by_splits.items())
    title = f"clouds are there already, point for point ({pairs})"
    yield from _listing(
        findings.duplicates, title, lambda e: f"{e['split']}, {e['name']}: as {e['of_split']}, {e['of_name']}"
    )
    if findings.differences:
        yield f"{len(findings.differences):,} differences from the official set:"
        yield from _examples(findings.differences, len(findings.differences))


def _listing(listing: Listing, title: str, line: Callable[[dict[str, Any]], str]) -> Iterator[str]:
    if listing.count:
        yield f"{listing.count:,} {title}:"
        yield from _examples([line(example) for example in listing.examples[:_MAX_LINES]], listing.count)


def _examples(lines: list[str], count: int) -> Iterator[str]:
    for line in lines[:_MAX_LINES]:
        yield f"  {line}"
    if count > _MAX_LINES:
        yield f"  and {count - _MAX_LINES:,} more"
