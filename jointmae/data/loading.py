"""From a path to clouds: the layout is recognised, its splits are gathered or taken from the cache, and joined."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from jointmae.data import cache, furniture
from jointmae.data.dataset import PointClouds, join
from jointmae.data.gather import BadPoints, SplitArrays, content_sha256, gather
from jointmae.data.layouts import find
from jointmae.data.layouts.layout import Layout, Names
from jointmae.data.layouts.own_h5 import OwnH5
from jointmae.errors import DataError
from jointmae.files import disk_errors


def load(
    spec: str | Path,
    splits: Sequence[str] = ("train",),
    device: torch.device | str = "cpu",
    bad_points: BadPoints = "error",
    skip_bad: bool = False,
) -> PointClouds:
    """Load the embedded set ("furniture") or what lies at a path, the given splits one after the other.

    `spec` is a path of any layout that `jointmae.data.layouts.find` recognises, with a variant where there are several,
    as in "h5_files:pb_t50_rs". Clouds are centred and scaled into the unit sphere, and all of one size (`gather`).
    `bad_points` "drop" leaves out points that are not finite, `skip_bad` files that cannot be read.

    Raises DataError naming the file, item and remedy, also for a path that does not exist; ValueError if `splits` is
    empty.
    """
    if not splits:
        raise ValueError("load: splits must name at least one split, got none")
    layout = layout_of(spec)
    for split in splits:
        if split not in layout.splits:
            raise DataError(layout.path, split, f"there is no such split: the set has {', '.join(layout.splits)}")
    return join([_load_split(layout, split, bad_points, skip_bad) for split in splits]).to(device)


def splits_of(spec: str | Path) -> Names:
    """The names of the splits that `load` can give of `spec`. Raises DataError as it does."""
    return layout_of(spec).splits


def layout_of(spec: str | Path) -> Layout:
    """The layout of a set that `load` can give. Raises DataError as it does."""
    if str(spec) != furniture.NAME:
        return find(spec)
    path = furniture.path()
    if _file_sha256(path) != furniture.SHA256:
        raise DataError(path, "", "the embedded data set is damaged: install jointmae again")
    return OwnH5(path)


def _load_split(layout: Layout, split: str, bad_points: BadPoints, skip_bad: bool) -> PointClouds:
    options = {"bad_points": bad_points, "skip_bad": skip_bad}
    entry = cache.entry_of(layout, split, options)
    if entry is None:
        arrays = gather(layout, split, bad_points, skip_bad)
        return _as_point_clouds(layout, arrays, _sha256(layout, arrays))
    found = entry.open()
    if found is None:
        place = entry.folder.parent
        with disk_errors(place):
            arrays = gather(layout, split, bad_points, skip_bad, place)
        sha256 = _sha256(layout, arrays)
        entry.store(arrays, sha256)
        found = entry.open() or (arrays, sha256)
    return _as_point_clouds(layout, *found)


def _as_point_clouds(layout: Layout, arrays: SplitArrays, sha256: str) -> PointClouds:
    up = torch.tensor([_up_vector(layout.up_axis)]).expand(len(arrays.points), 3)  # [S, 3]
    return PointClouds(
        title=_title(layout),
        layout=layout.kind,
        points=torch.from_numpy(arrays.points),
        labels=torch.from_numpy(arrays.labels),
        names=arrays.names,
        up=up,
        classes=layout.classes,
        parts=None if arrays.parts is None else torch.from_numpy(arrays.parts),
        part_names=layout.part_names,
        source=layout.source,
        licence=layout.licence,
        sha256=sha256,
        bad_files=arrays.bad_files,
        num_dropped=arrays.num_dropped,
    )


def _title(layout: Layout) -> str:
    """The file's or folder's name, and the variant."""
    return "-".join(part for part in (layout.path.resolve().stem, layout.variant) if part)


def _sha256(layout: Layout, arrays: SplitArrays) -> str:
    """Of our own form the file's, as `sha256sum` gives it; else of the content."""
    if isinstance(layout, OwnH5):
        return _file_sha256(layout.path)
    return content_sha256(arrays, (layout.classes, layout.part_names, (layout.up_axis,)))


def _up_vector(up_axis: str) -> list[float]:
    """The unit vector of "+z", "-y" and the like."""
    sign = -1.0 if up_axis[0] == "-" else 1.0
    return [sign if axis == up_axis[1] else 0.0 for axis in "xyz"]


def _file_sha256(path: Path) -> str:
    digest: Any = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise DataError(path, "", f"cannot be read ({error.strerror}): check the file and its permissions") from error
    return str(digest.hexdigest())
