"""ShapeNetPart in its two forms: text files with normals (PointNet++) and HDF5 (PointNet).

The text form, as charlesq34/pointnet2 (part_dataset_all_normal.py) and yanx27/Pointnet_Pointnet2_pytorch read it:
synsetoffset2category.txt has lines Airplane<TAB>02691156; train_test_split/shuffled_train_file_list.json is a list of
"shape_data/02691156/1a04e3eab45ca15dd86060f189eb133", whose file is 02691156/1a04e3eab45ca15dd86060f189eb133.txt with
rows x y z nx ny nz part. A name that a list has twice is one cloud, as in those loaders, which make a set of it: the
first log fewer shapes than the lists have lines.

The HDF5 form, as charlesq34/pointnet (part_seg/train.py) and antao97/dgcnn.pytorch read it: all_object_categories.txt
has lines Airplane<TAB>02691156 in the order of the labels, train_hdf5_file_list.txt names files, each with
data [S, 2048, 3] float32, label [S, 1] and pid [S, 2048], integers.

In both, a part is one of 50, numbered through all classes: `PARTS` says which are whose.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jointmae.data import official
from jointmae.data.layouts.layout import BadFile, Block, Layout, Names
from jointmae.data.layouts.lists import expect_below, is_file, missing, read_at_most, read_json_lines, read_lines, shown
from jointmae.data.layouts.many import Entry, count_hdf5, file_blocks, hdf5_blocks
from jointmae.data.layouts.modelnet_hdf5 import files_of_list
from jointmae.errors import DataError

MAX_TEXT_BYTES = 64 * 2**20
"""Of one cloud; the official ones have some 200 kB."""

_TABLE = official.table("shapenet_part")
CLASSES: Names = tuple(_TABLE["variants"]["txt"]["classes"])
PARTS = {
    name: range(stop - count, stop)
    for name, count, stop in zip(CLASSES, _TABLE["num_parts"], accumulate(_TABLE["num_parts"]), strict=True)
}
"""The parts of each class, as numbers in 0..49."""
PART_NAMES: Names = tuple(f"{name}/{i}" for name, parts in PARTS.items() for i in range(len(parts)))

_SYNSETS: dict[str, str] = dict(zip(CLASSES, _TABLE["synsets"], strict=True))
_SPLITS = ("train", "val", "test")
_CATEGORIES = {"txt": "synsetoffset2category.txt", "hdf5": "all_object_categories.txt"}
_LISTS = {"txt": "train_test_split/shuffled_{}_file_list.json", "hdf5": "{}_hdf5_file_list.txt"}
_FOLDERS = {
    "txt": ("", "shapenetcore_partanno_segmentation_benchmark_v0_normal"),
    "hdf5": ("", "hdf5_data", "shapenet_part_seg_hdf5_data", "shapenet_part_seg_hdf5_data/hdf5_data"),
}


class ShapeNetPart(Layout):
    """The folder of one of the two forms, or the one that holds it."""

    kind = "ShapeNetPart"
    tree = """\
shapenetcore_partanno_segmentation_benchmark_v0_normal/    variant txt
    synsetoffset2category.txt                              Airplane 02691156, ...
    train_test_split/
        shuffled_train_file_list.json                      ["shape_data/02691156/1a04e3eab45ca15dd86060f189eb133", ...]
        shuffled_val_file_list.json
        shuffled_test_file_list.json
    02691156/
        1a04e3eab45ca15dd86060f189eb133.txt                rows x y z nx ny nz part
        ...
    ...
hdf5_data/                                                 variant hdf5
    all_object_categories.txt                              Airplane 02691156, ..., in the order of the labels
    train_hdf5_file_list.txt                               ply_data_train0.h5, ...
    val_hdf5_file_list.txt
    test_hdf5_file_list.txt
    ply_data_train0.h5                                     data [S, 2048, 3], label [S, 1], pid [S, 2048]
    ..."""

    @classmethod
    def variants(cls, path: Path) -> Names:
        """Those of "txt" and "hdf5" whose categories and one list are there."""
        return tuple(variant for variant in _FOLDERS if _root(path, variant) is not None)

    def __init__(self, path: Path, variant: str) -> None:
        root = _root(path, variant)
        if root is None:
            raise missing(path, [_CATEGORIES.get(variant, variant), "list of a split"], self.tree)
        self.path, self.variant, self._root = path, variant, root
        self.splits = _splits(root, variant)
        self.classes, self.part_names = CLASSES, PART_NAMES
        self.up_axis, self.source, self.licence = _TABLE["up_axis"], _TABLE["source"], _TABLE["terms"]
        _check_categories(root / _CATEGORIES[variant], whole=variant == "hdf5")
        self._files: dict[str, list[Path]] = {}
        self._entries: dict[str, list[Entry]] = {}
        for split in self.splits:
            if variant == "hdf5":
                self._files[split] = files_of_list(root, _LISTS["hdf5"].format(split))
            else:
                self._entries[split] = _read_list(root / _LISTS["txt"].format(split))
                self._files[split] = [root / entry.name for entry in self._entries[split]]

    def files(self) -> list[Path]:
        """The lists, then the files that they name."""
        lists = [_CATEGORIES[self.variant], *(_LISTS[self.variant].format(split) for split in self.splits)]
        return [self._root / name for name in lists] + [path for split in self.splits for path in self._files[split]]

    def num_clouds(self, split: str) -> int:
        """The names in a split's list, each counted once, or what the HDF5 headers say."""
        return len(self._entries[split]) if self._entries else count_hdf5(self._root, self._files[split])

    def blocks(self, split: str, skip_bad: bool = False) -> Iterator[Block | BadFile]:
        """The clouds in the order of the list."""
        if self._entries:
            return file_blocks(self._root, self._entries[split], _read_texts, skip_bad)
        return hdf5_blocks(self._root, self._files[split], len(CLASSES), len(PART_NAMES), skip_bad)


def _root(path: Path, variant: str) -> Path | None:
    for folder in _FOLDERS.get(variant, ()):
        root = path / folder
        if is_file(root / _CATEGORIES[variant]) and _splits(root, variant):
            return root
    return None


def _splits(root: Path, variant: str) -> Names:
    return tuple(split for split in _SPLITS if is_file(root / _LISTS[variant].format(split)))


def _check_categories(path: Path, whole: bool) -> None:
    """Lines of a class and its synset; with `whole` all classes in the order of the labels. Raises DataError."""
    lines = read_lines(path)
    for i, line in enumerate(lines):
        known = line.split()[0] in CLASSES and line.split()[1:] == [_SYNSETS[line.split()[0]]]
        if not known or (whole and line.split()[0] != CLASSES[i % len(CLASSES)]):
            wanted = " ".join(list(_SYNSETS.items())[i % len(CLASSES)])
            what = f"got {shown(line)}, wanted the class and synset of ShapeNetPart, as in {wanted!r}: copy it again"
            raise DataError(path, f"line {i + 1}", what)
    if len(lines) > len(CLASSES) or (whole and len(lines) < len(CLASSES)):
        raise DataError(path, "", f"got {len(lines)} classes, wanted {len(CLASSES)}: copy it again")


def _read_list(path: Path) -> list[Entry]:
    labels = {synset: label for label, synset in enumerate(_SYNSETS.values())}
    entries = {}
    for i, line in enumerate(read_json_lines(path)):
        parts = expect_below(path, i, line).split("/")
        if len(parts) != 3 or parts[0] != "shape_data" or parts[1] not in labels:
            wanted = "a synset of ShapeNetPart, as in shape_data/02691156/1a04e3eab45ca15dd86060f189eb133"
            raise DataError(path, f"line {i + 1}", f"got {shown(line)}, wanted {wanted}: correct the list")
        entries[line] = Entry(f"{parts[1]}/{parts[2]}.txt", labels[parts[1]])
    return list(entries.values())


def _read_texts(
    root: Path, entries: Sequence[Entry]
) -> Iterable[tuple[NDArray[np.float64], NDArray[np.uint8] | None] | DataError]:
    """`many.Read` of rows with a part."""
    for entry in entries:
        try:
            yield _read_text(root / entry.name)
        except DataError as error:
            yield error


def _read_text(path: Path) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Points [N, 3] and parts [N]. Raises DataError."""
    rows = _read_rows(path)  # [N, 7]
    if rows.shape[1] != 7:
        raise DataError(path, "", f"got {rows.shape[1]} columns, wanted 7, x y z nx ny nz part: copy it again")
    parts = rows[:, 6]
    wrong = ~np.isin(parts, np.arange(len(PART_NAMES)))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(path, f"row {row}", f"got part {parts[row]:g}, wanted 0..{len(PART_NAMES) - 1}: copy it again")
    return rows[:, :3], parts.astype(np.uint8)


def _read_rows(path: Path) -> NDArray[np.float64]:
    """[N, columns], N >= 1."""
    data = read_at_most(path, MAX_TEXT_BYTES, "one cloud")
    if not data.strip():
        raise DataError(path, "", "is empty: copy it again")
    try:
        return np.loadtxt(io.BytesIO(data), np.float64, comments=None, ndmin=2)
    except (ValueError, OverflowError) as error:
        what = f"wanted rows of 7 numbers, x y z nx ny nz part ({str(error)[:200].rstrip('.')}): copy it again"
        raise DataError(path, "", what) from error
