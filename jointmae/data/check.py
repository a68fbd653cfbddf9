"""Read all of a data set, and say what is wrong with it and what to know of it.

The exit code is 3 where training would refuse the set: a file that cannot be read, a coordinate that is not finite.
Everything else, as clouds that are twice there or counts that differ from the official ones, is worth knowing and
leaves the exit code 0. One block of clouds is in memory at a time; of each cloud a digest and its name are kept.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jointmae.data import official
from jointmae.data.layouts.layout import BadFile, Block, Layout
from jointmae.data.measure import Measures, measure
from jointmae.data.official import OfficialSet
from jointmae.errors import DataError

MAX_EXAMPLES = 1000
"""Findings of a kind that are kept one by one; all are counted."""
MAX_ROWS = 20
"""Rows that are kept of a cloud with bad ones."""


@dataclass
class Listing:
    """How often something was found, and where first."""

    count: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **example: Any) -> None:
        """One more; its fields are kept as long as there is room."""
        self.count += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(example)


@dataclass
class SplitFindings:
    """What one split holds; `radius` is of the clouds without NaN, the largest distance from the centre of mass."""

    name: str
    listed: int | None  # clouds, as lists and headers say; None where those cannot be read
    num_clouds: int = 0
    per_class: list[int] = field(default_factory=list)
    unlabelled: int = 0
    num_points: tuple[int, int] = (0, 0)  # the fewest and the most points of a cloud
    radius: tuple[float, float, float] | None = None  # smallest, median, largest
    repeated: float = 0.0  # the share of points that another point of their cloud equals


@dataclass
class Findings:
    """What `check` found; `asdict` of it is what --json writes."""

    path: str
    kind: str
    variant: str
    classes: tuple[str, ...]
    up_axis: str
    splits: list[SplitFindings] = field(default_factory=list)
    bad_files: Listing = field(default_factory=Listing)  # split, name, what
    not_finite: Listing = field(default_factory=Listing)  # split, name, count, rows
    degenerate: Listing = field(default_factory=Listing)  # split, name, what
    duplicates: Listing = field(default_factory=Listing)  # split, name, of_split, of_name: the first such cloud
    duplicates_by_splits: dict[str, int] = field(default_factory=dict)  # "train in train", "test in train"
    differences: list[str] = field(default_factory=list)  # from the official set
    source: str = ""
    get: str = ""
    terms: str = ""

    @property
    def usable(self) -> bool:
        """Whether training would take the set as it is."""
        return not self.bad_files.count and not self.not_finite.count

    @property
    def exit_code(self) -> int:
        """0, or 3 where training would refuse the set."""
        return 0 if self.usable else DataError.exit_code


def check(layout: Layout) -> Findings:
    """Read all splits of a layout. What is wrong with single files and clouds is a finding, not an error."""
    findings = Findings(str(layout.path), layout.kind, layout.variant, layout.classes, layout.up_axis)
    seen: dict[tuple[int, int], tuple[str, str]] = {}
    for split in layout.splits:
        findings.splits.append(_check_split(layout, split, findings, seen))
    numbers = official.find(layout.kind, layout.variant)
    findings.source, findings.terms = layout.source, layout.licence
    if numbers is not None:
        findings.source, findings.get, findings.terms = numbers.source, numbers.get, numbers.terms
        findings.differences = [*_differences(findings, numbers), *_other_lists(layout, numbers)]
    return findings


def _check_split(
    layout: Layout, split: str, findings: Findings, seen: dict[tuple[int, int], tuple[str, str]]
) -> SplitFindings:
    result = SplitFindings(split, _listed(layout, split), per_class=[0] * len(layout.classes))
    radii: list[float] = []
    num_points = num_repeated = 0.0
    for block in layout.blocks(split, skip_bad=True):
        if isinstance(block, BadFile):
            findings.bad_files.add(split=split, name=block.name, what=block.what)
            continue
        _count(result, block)
        for name, size, measures in zip(block.names, block.sizes.tolist(), measure(block), strict=True):
            _note(findings, seen, split, name, measures)
            radii.append(measures.radius)
            num_points, num_repeated = num_points + size, num_repeated + size * measures.repeated
    finite = np.array(radii)[np.isfinite(radii)]
    if len(finite):
        result.radius = (float(finite.min()), float(np.median(finite)), float(finite.max()))
    result.repeated = num_repeated / num_points if num_points else 0.0
    return result


def _listed(layout: Layout, split: str) -> int | None:
    try:
        return layout.num_clouds(split)
    except DataError:
        return None  # the blocks will say which file it is


def _count(result: SplitFindings, block: Block) -> None:
    labels = block.labels[block.labels >= 0]
    counts = np.bincount(labels, minlength=len(result.per_class))
    result.per_class = [old + int(new) for old, new in zip(result.per_class, counts, strict=True)]
    result.unlabelled += len(block) - len(labels)
    low, high = int(block.sizes.min()), int(block.sizes.max())
    result.num_points = (
        min(low, result.num_points[0]) if result.num_clouds else low,
        max(high, result.num_points[1]),
    )
    result.num_clouds += len(block)


def _note(
    findings: Findings, seen: dict[tuple[int, int], tuple[str, str]], split: str, name: str, measures: Measures
) -> None:
    """What is to be said of one cloud."""
    if len(measures.bad_rows):
        rows = measures.bad_rows[:MAX_ROWS].tolist()
        findings.not_finite.add(split=split, name=name, count=len(measures.bad_rows), rows=rows)
    if measures.shape:
        findings.degenerate.add(split=split, name=name, what=measures.shape)
    if measures.digest in seen:
        of_split, of_name = seen[measures.digest]
        findings.duplicates.add(split=split, name=name, of_split=of_split, of_name=of_name)
        pair = f"{split} in {of_split}"
        findings.duplicates_by_splits[pair] = findings.duplicates_by_splits.get(pair, 0) + 1
    else:
        seen[measures.digest] = (split, name)


def _differences(findings: Findings, numbers: OfficialSet) -> list[str]:
    """Where classes, counts and sizes are not the official ones."""
    same_classes = findings.classes == numbers.classes
    lines = (
        [] if same_classes else [f"classes: got {len(findings.classes)} that are not the official {numbers.classes}"]
    )
    found = {split.name: split for split in findings.splits}
    for name, count in numbers.counts.items():
        got = found[name].num_clouds if name in found else 0
        if got != count:
            lines.append(f"{name}: got {got:,} clouds, official are {count:,}")
        if name in found and same_classes:
            lines += _class_differences(found[name], numbers)
    for split in findings.splits:
        if numbers.num_points is not None and split.num_clouds and set(split.num_points) != {numbers.num_points}:
            sizes = " to ".join(f"{size:,}" for size in sorted(set(split.num_points)))
            lines.append(f"{split.name}: got clouds of {sizes} points, official are {numbers.num_points:,}")
    return lines


def _class_differences(split: SplitFindings, numbers: OfficialSet) -> list[str]:
    counts = numbers.counts_per_class.get(split.name, tuple(split.per_class))
    return [
        f"{split.name}, class {name}: got {got:,} clouds, official are {count:,}"
        for name, got, count in zip(numbers.classes, split.per_class, counts, strict=True)
        if got != count
    ]


def _other_lists(layout: Layout, numbers: OfficialSet) -> list[str]:
    """List files that are not the official ones, by their SHA-256."""
    lines = []
    for path in layout.files():
        for name, sha256 in numbers.lists.items():
            if path.as_posix().endswith(f"/{name}") and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
                lines.append(f"{name}: is not the official list, by its SHA-256")
    return lines
