"""The layouts in which data sets lie on disk, one file each, and which of them a path is."""

from __future__ import annotations

from pathlib import Path

from jointmae.data import archive
from jointmae.data.layouts.folders import Folders
from jointmae.data.layouts.layout import Layout, Names
from jointmae.data.layouts.modelnet_hdf5 import ModelNetHdf5
from jointmae.data.layouts.modelnet_resampled import ModelNetResampled
from jointmae.data.layouts.own_h5 import OwnH5
from jointmae.data.layouts.scanobjectnn import ScanObjectNN
from jointmae.data.layouts.shapenet55 import ShapeNet55
from jointmae.data.layouts.shapenet_part import ShapeNetPart
from jointmae.data.shapes.read import SUFFIXES
from jointmae.errors import DataError

LAYOUTS: tuple[type[Layout], ...] = (
    OwnH5,
    ModelNetHdf5,
    ModelNetResampled,
    ScanObjectNN,
    ShapeNet55,
    ShapeNetPart,
    Folders,  # last: the others are folders of files too
)
_MISSING = 'give the path of an .h5 file, of a folder or a file of shapes, or "furniture"'
_UNKNOWN = "their trees are printed by `python -m jointmae.data layouts`"
_ADVICE = {
    ".laz": ": unpack it to .las first",
    **dict.fromkeys((".pkl", ".pt", ".pth", ".dat"), ": pickles are never loaded, save arrays as .npz"),
}


def find(spec: str | Path) -> Layout:
    """The layout of what lies at `spec`, a path, followed by ":VARIANT" where a set has several.

    Raises DataError for a path that does not exist or whose layout is none of ours, and where a variant must be chosen.
    """
    path, wanted = _path_and_variant(str(spec))
    if not path.exists():
        raise DataError(path, "", f"does not exist: {_MISSING}")
    for layout in LAYOUTS:
        variants = layout.variants(path)
        if variants:
            return layout(path, _chosen(path, layout, variants, wanted))
    if path.is_file():
        suffix = path.suffix.lower()
        wanted = f"an .h5 file, one of {' '.join(archive.SUFFIXES)}, or one of {' '.join(SUFFIXES)}"
        raise DataError(path, "", f"got {suffix or 'no suffix'}, wanted {wanted}{_ADVICE.get(suffix, ': convert it')}")
    kinds = ", ".join(layout.kind for layout in LAYOUTS)
    raise DataError(path, "", f"is no data set that can be read, wanted one of {kinds}: {_UNKNOWN}")


def _path_and_variant(spec: str) -> tuple[Path, str]:
    """A path that exists is one, colons and all."""
    path, colon, variant = spec.rpartition(":")
    if colon and path and not Path(spec).exists() and Path(path).exists():
        return Path(path), variant
    return Path(spec), ""


def _chosen(path: Path, layout: type[Layout], variants: Names, wanted: str) -> str:
    if wanted in variants:
        return wanted
    if not wanted and len(variants) == 1:
        return variants[0]
    names = ", ".join(variants)
    if variants == ("",):
        raise DataError(path, "", f'{layout.kind} has no variants, got {wanted!r}: leave out ":{wanted}"')
    got = f"there is no variant {wanted!r}" if wanted else "one of its variants must be chosen"
    raise DataError(path, "", f"{layout.kind}: {got}, wanted {names}: write {path}:{variants[-1]}")
