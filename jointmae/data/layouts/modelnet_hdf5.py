"""ModelNet40 as PointNet's authors sampled it: modelnet40_ply_hdf5_2048.

As charlesq34/pointnet (provider.py, train.py) and WangYueFt/dgcnn read it. train_files.txt and test_files.txt name
files by the path that they had in that repository, data/modelnet40_ply_hdf5_2048/ply_data_train0.h5; here the last part
counts. A file has data [S, 2048, 3] float32, label [S, 1] uint8, and normal and faceId, which are not read. A label is
a line of shape_names.txt. The files *_id2file.json are not read: they are said not to fit the labels (pointnet2 issue
104).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jointmae.data import official
from jointmae.data.layouts.layout import BadFile, Block, Layout, Names
from jointmae.data.layouts.lists import expect_below, expect_unique, is_file, last_part, missing, read_lines
from jointmae.data.layouts.many import count_hdf5, hdf5_blocks
from jointmae.errors import DataError

_FOLDER = "modelnet40_ply_hdf5_2048"
_LISTS = {"train": "train_files.txt", "test": "test_files.txt"}


class ModelNetHdf5(Layout):
    """The folder modelnet40_ply_hdf5_2048, or the one that holds it."""

    kind = "ModelNet40 (hdf5)"
    tree = """\
modelnet40_ply_hdf5_2048/
    shape_names.txt           a class a line, in the order of the labels
    train_files.txt           data/modelnet40_ply_hdf5_2048/ply_data_train0.h5, ...
    test_files.txt
    ply_data_train0.h5        data [S, 2048, 3], label [S, 1]
    ..."""

    @classmethod
    def variants(cls, path: Path) -> Names:
        """("",) where a list of files and one of those files' names are there."""
        return ("",) if _root(path) is not None else ()

    def __init__(self, path: Path, variant: str = "") -> None:
        root = _root(path)
        if root is None:
            raise missing(path, _LISTS.values(), self.tree)
        self.path, self.variant, self._root = path, variant, root
        self.classes = expect_unique(root / "shape_names.txt", read_lines(root / "shape_names.txt"))
        if len(self.classes) > 256:
            raise DataError(root / "shape_names.txt", "", f"got {len(self.classes)} classes, wanted at most 256")
        self._files = {split: files_of_list(root, name) for split, name in _LISTS.items() if is_file(root / name)}
        self.splits = tuple(self._files)
        self.part_names = ()
        table = official.table("modelnet_hdf5")
        self.up_axis, self.source, self.licence = table["up_axis"], table["source"], table["terms"]

    def files(self) -> list[Path]:
        """The lists, then the files that they name."""
        lists = [self._root / "shape_names.txt", *(self._root / _LISTS[split] for split in self.splits)]
        return lists + [path for split in self.splits for path in self._files[split]]

    def num_clouds(self, split: str) -> int:
        """Clouds of a split, as the files' headers say."""
        return count_hdf5(self._root, self._files[split])

    def blocks(self, split: str, skip_bad: bool = False) -> Iterator[Block | BadFile]:
        """The clouds in the order of the list."""
        return hdf5_blocks(self._root, self._files[split], len(self.classes), skip_bad=skip_bad)


def files_of_list(root: Path, name: str) -> list[Path]:
    """The HDF5 files below `root` that a list names by whatever folder they once were in.

    Raises DataError for a path that leaves its folder, a file named twice, or one that is not there.
    """
    path = root / name
    lines = [expect_below(path, i, line) for i, line in enumerate(read_lines(path))]
    names = expect_unique(path, tuple(last_part(line) for line in lines))
    for i, name in enumerate(names):
        if not is_file(root / name):
            raise DataError(path, f"line {i + 1}", f"{root / name} does not exist: copy the set again")
    return [root / name for name in names]


def _root(path: Path) -> Path | None:
    for root in (path, path / _FOLDER):
        if is_file(root / "shape_names.txt") and any(is_file(root / name) for name in _LISTS.values()):
            return root
    return None
