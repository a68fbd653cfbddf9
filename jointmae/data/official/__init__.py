"""What is publicly known of the official data sets, a JSON file each: counts, class order, up axis, origin, terms.

Each fact carries where it comes from; what could not be verified says so. Nothing here is needed to read a set:
`jointmae.data.check` compares with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

Names = tuple[str, ...]


@dataclass(frozen=True)
class OfficialSet:
    """One variant of an official set; a split that is missing in a mapping is one whose numbers are not known."""

    kind: str  # as its layout has it
    variant: str
    classes: Names  # in the order of the labels
    up_axis: str
    num_points: int | None  # of each cloud; None where clouds differ
    counts: Mapping[str, int]  # clouds of each split
    counts_per_class: Mapping[str, tuple[int, ...]]  # clouds of each class, of each split
    lists: Mapping[str, str]  # SHA-256 of its list files, by their paths below the root
    source: str
    get: str  # where to get it
    terms: str
    origin: str  # of the counts


def find(kind: str, variant: str) -> OfficialSet | None:
    """The official numbers of a layout's `kind` and `variant`; None for a set that has none."""
    for name in ("modelnet_hdf5", "modelnet_resampled", "scanobjectnn", "shapenet55", "shapenet_part"):
        contents = table(name)
        if contents["kind"] == kind and variant in contents["variants"]:
            return _official(contents, variant)
    return None


@cache
def table(name: str) -> dict[str, Any]:
    """The whole of `name`.json, as it is."""
    contents: dict[str, Any] = json.loads(Path(__file__).with_name(f"{name}.json").read_text(encoding="utf-8"))
    return contents


def _official(contents: dict[str, Any], variant: str) -> OfficialSet:
    numbers = contents["variants"][variant]
    return OfficialSet(
        kind=contents["kind"],
        variant=variant,
        classes=tuple(numbers["classes"]),
        up_axis=contents["up_axis"],
        num_points=contents["num_points"],
        counts=numbers["counts"],
        counts_per_class={split: tuple(counts) for split, counts in numbers["counts_per_class"].items()},
        lists=numbers["lists"],
        source=contents["source"],
        get=contents["get"],
        terms=contents["terms"],
        origin=numbers["origin"],
    )
