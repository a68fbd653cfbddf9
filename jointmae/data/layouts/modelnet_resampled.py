"""ModelNet40 and ModelNet10 as PointNet++'s authors sampled them: modelnet40_normal_resampled.

As charlesq34/pointnet2 (modelnet_dataset.py) and yanx27/Pointnet_Pointnet2_pytorch read it: a line of a list is
airplane_0001, its class is what stands before the last _, its file airplane/airplane_0001.txt, with 10,000 rows
x,y,z,nx,ny,nz. A label is a line of modelnet40_shape_names.txt, which pointnet2 calls shape_names.txt.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jointmae.data import official
from jointmae.data.layouts.layout import BadFile, Block, Layout, Names
from jointmae.data.layouts.lists import expect_below, expect_unique, is_file, is_folder, missing, read_lines, shown
from jointmae.data.layouts.many import Entry, file_blocks, read_points
from jointmae.errors import DataError

_FOLDER = "modelnet40_normal_resampled"
_SPLITS = ("train", "test")


class ModelNetResampled(Layout):
    """The folder modelnet40_normal_resampled, or the one that holds it."""

    kind = "ModelNet (normal resampled)"
    tree = """\
modelnet40_normal_resampled/
    modelnet40_shape_names.txt    a class a line, in the order of the labels
    modelnet40_train.txt          airplane_0001, ...
    modelnet40_test.txt
    modelnet10_*.txt              the same three for the variant modelnet10
    airplane/
        airplane_0001.txt         10,000 rows x,y,z,nx,ny,nz
        ...
    ..."""

    @classmethod
    def variants(cls, path: Path) -> Names:
        """Those of "modelnet40" and "modelnet10" whose names and one list are there."""
        return tuple(variant for variant in ("modelnet40", "modelnet10") if _root(path, variant) is not None)

    def __init__(self, path: Path, variant: str) -> None:
        root = _root(path, variant)
        if root is None:
            raise missing(path, [f"{variant}_{split}.txt" for split in _SPLITS], self.tree)
        self.path, self.variant, self._root = path, variant, root
        names = _shape_names(root, variant)
        self.classes = expect_unique(names, read_lines(names))
        if not any(is_folder(root / name) for name in self.classes):
            what = "holds the lists but no folder of a class; pickled .dat files are never read: get the text files"
            raise DataError(root, "", what)
        lists = {split: root / f"{variant}_{split}.txt" for split in _SPLITS}
        self._lists = {split: path for split, path in lists.items() if is_file(path)}
        self._entries = {split: self._read_list(path) for split, path in self._lists.items()}
        self.splits = tuple(self._entries)
        self.part_names = ()
        table = official.table("modelnet_resampled")
        self.up_axis, self.source, self.licence = table["up_axis"], table["source"], table["terms"]

    def files(self) -> list[Path]:
        """The lists, then the files that they name."""
        lists = [_shape_names(self._root, self.variant), *self._lists.values()]
        return lists + [self._root / entry.name for entries in self._entries.values() for entry in entries]

    def num_clouds(self, split: str) -> int:
        """The lines of a split's list."""
        return len(self._entries[split])

    def blocks(self, split: str, skip_bad: bool = False) -> Iterator[Block | BadFile]:
        """The clouds in the order of the list."""
        return file_blocks(self._root, self._entries[split], read_points, skip_bad)

    def _read_list(self, path: Path) -> list[Entry]:
        labels = {name: label for label, name in enumerate(self.classes)}
        entries = []
        for i, line in enumerate(expect_unique(path, read_lines(path))):
            name = expect_below(path, i, line).rpartition("_")[0]
            if name not in labels or "/" in line:
                wanted = "a class of the set, _ and a number, as in airplane_0001"
                raise DataError(path, f"line {i + 1}", f"got {shown(line)}, wanted {wanted}: correct the list")
            entries.append(Entry(f"{name}/{line}.txt", labels[name]))
        return entries


def _root(path: Path, variant: str) -> Path | None:
    for root in (path, path / _FOLDER):
        has_list = any(is_file(root / f"{variant}_{split}.txt") for split in _SPLITS)
        if has_list and is_file(_shape_names(root, variant)):
            return root
    return None


def _shape_names(root: Path, variant: str) -> Path:
    """The list of classes, by the name that later loaders or pointnet2 give it."""
    path, older = root / f"{variant}_shape_names.txt", root / "shape_names.txt"
    return older if variant == "modelnet40" and not is_file(path) and is_file(older) else path
