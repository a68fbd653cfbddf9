"""ScanObjectNN's HDF5 files: main_split with the background of the scans, main_split_nobg without it.

File names, and what they hold, from the README of hkust-vgd/scanobjectnn: data [S, 2048, 3] float32, label [S] int32
and mask [S, 2048] int32 (-1 where a point is background), which is not read. The order of the classes is that of its
training_data/shape_names_ext.txt, as the authors confirm in training_data/README.md. Only the main split is read; the
folders split1 to split4 are not.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from jointmae.data import official
from jointmae.data.layouts.layout import BadFile, Block, Layout, Names
from jointmae.data.layouts.lists import is_file, missing
from jointmae.data.layouts.many import count_hdf5, hdf5_blocks

_ENDINGS = {
    "pb_t50_rs": "objectdataset_augmentedrot_scale75.h5",
    "pb_t50_r": "objectdataset_augmentedrot.h5",
    "pb_t25_r": "objectdataset_augmented25rot.h5",
    "pb_t25": "objectdataset_augmented25_norot.h5",
}
_FILES = {
    "obj_bg": ("main_split", "objectdataset.h5"),
    "obj_only": ("main_split_nobg", "objectdataset.h5"),
    **{variant: ("main_split", ending) for variant, ending in _ENDINGS.items()},
    **{f"{variant}_nobg": ("main_split_nobg", ending) for variant, ending in _ENDINGS.items()},
}
_PREFIXES = {"train": "training", "test": "test"}


class ScanObjectNN(Layout):
    """The folder h5_files, main_split or main_split_nobg, or the one that holds h5_files or the two."""

    kind = "ScanObjectNN"
    tree = """\
h5_files/
    main_split/
        training_objectdataset.h5                       variant obj_bg; data [S, 2048, 3], label [S]
        test_objectdataset.h5
        training_objectdataset_augmentedrot_scale75.h5  variant pb_t50_rs
        test_objectdataset_augmentedrot_scale75.h5
        ...                                             pb_t25, pb_t25_r, pb_t50_r
    main_split_nobg/
        training_objectdataset.h5                       variant obj_only
        test_objectdataset.h5"""

    @classmethod
    def variants(cls, path: Path) -> Names:
        """Those of which a file is there."""
        return tuple(variant for variant in _FILES if _files(path, variant))

    def __init__(self, path: Path, variant: str) -> None:
        self.path, self.variant, self._files = path, variant, _files(path, variant)
        if not self._files:
            raise missing(path, [f"training_{_FILES.get(variant, ('', variant))[1]}"], self.tree)
        self.splits = tuple(self._files)
        table = official.table("scanobjectnn")
        self.classes = tuple(table["variants"]["obj_bg"]["classes"])
        self.part_names = ()
        self.up_axis, self.source, self.licence = table["up_axis"], table["source"], table["terms"]

    def files(self) -> list[Path]:
        """One file a split."""
        return list(self._files.values())

    def num_clouds(self, split: str) -> int:
        """Clouds of a split, as its file's header says."""
        return count_hdf5(self._files[split].parent, [self._files[split]])

    def blocks(self, split: str, skip_bad: bool = False) -> Iterator[Block | BadFile]:
        """The clouds in the file's order."""
        path = self._files[split]
        return hdf5_blocks(path.parent, [path], len(self.classes), skip_bad=skip_bad)


def _files(path: Path, variant: str) -> dict[str, Path]:
    """The file of each split that is there; none for a variant that is not."""
    if variant not in _FILES:
        return {}
    folder, ending = _FILES[variant]
    for root in _roots(path, folder):
        files = {split: root / f"{prefix}_{ending}" for split, prefix in _PREFIXES.items()}
        found = {split: file for split, file in files.items() if is_file(file)}
        if found:
            return found
    return {}


def _roots(path: Path, folder: str) -> list[Path]:
    """Where `folder` may be. A folder with files of the set that has neither name is taken for main_split."""
    with contextlib.suppress(OSError):  # "." has no name where the current folder is gone
        path = Path(os.path.abspath(path))
    is_nobg = path.name == "main_split_nobg"
    here = [path] if is_nobg == (folder == "main_split_nobg") else []
    return [*here, path / folder, path / "h5_files" / folder]
