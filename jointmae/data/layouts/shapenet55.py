"""ShapeNet-55, ShapeNet-34 and its 21 unseen classes, as PoinTr's authors sampled them.

As yuxumin/PoinTr (datasets/ShapeNet55Dataset.py) and Pang-Yatian/Point-MAE read them: a line of a list is the name of a
file in shapenet_pc, 02691156-1a04e3eab45ca15dd86060f189eb133.npy, of which what stands before the - is the WordNet
synset of the class. A file is [8192, 3]; PoinTr's shapenet2pc.py writes float64, its loader makes float32 of it. The
names of the 55 classes and their order (by synset) are those of PoinTr's data/shapenet_synset_dict.json, in all
variants. Point-MAE's loader can pre-train on both lists ("whole"): ask for the splits train and test.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jointmae.data import official
from jointmae.data.layouts.layout import BadFile, Block, Layout, Names
from jointmae.data.layouts.lists import expect_below, expect_unique, is_file, is_folder, missing, read_lines, shown
from jointmae.data.layouts.many import Entry, file_blocks, read_points
from jointmae.errors import DataError

_CLOUDS = "shapenet_pc"
_FOLDERS = {"shapenet55": "ShapeNet-55", "shapenet34": "ShapeNet-34", "unseen21": "ShapeNet-Unseen21"}


class ShapeNet55(Layout):
    """The folder ShapeNet55-34, or the one that holds it."""

    kind = "ShapeNet55"
    tree = """\
ShapeNet55-34/
    shapenet_pc/
        02691156-1a04e3eab45ca15dd86060f189eb133.npy    [8192, 3]
        ...
    ShapeNet-55/                                        variant shapenet55
        train.txt                                       02691156-1a04e3eab45ca15dd86060f189eb133.npy, ...
        test.txt
    ShapeNet-34/                                        variant shapenet34, the same two
    ShapeNet-Unseen21/                                  variant unseen21, test.txt alone"""

    @classmethod
    def variants(cls, path: Path) -> Names:
        """Those of which a list is there, beside the folder of the clouds."""
        return tuple(variant for variant in _FOLDERS if _root(path, variant) is not None)

    def __init__(self, path: Path, variant: str) -> None:
        root = _root(path, variant)
        if root is None:
            raise missing(path, [_CLOUDS, f"{_FOLDERS.get(variant, variant)}/train.txt"], self.tree)
        self.path, self.variant, self._root = path, variant, root
        self._lists = _lists(root, variant)
        table = official.table("shapenet55")
        self.classes = tuple(table["variants"]["shapenet55"]["classes"])
        self.part_names = ()
        self.up_axis, self.source, self.licence = table["up_axis"], table["source"], table["terms"]
        labels = {synset: label for label, synset in enumerate(table["synsets"])}
        self._entries = {split: _read_list(path, labels) for split, path in self._lists.items()}
        self.splits = tuple(self._entries)

    def files(self) -> list[Path]:
        """The lists, then the files that they name."""
        clouds = [self._root / entry.name for entries in self._entries.values() for entry in entries]
        return [*self._lists.values(), *clouds]

    def num_clouds(self, split: str) -> int:
        """The lines of a split's list."""
        return len(self._entries[split])

    def blocks(self, split: str, skip_bad: bool = False) -> Iterator[Block | BadFile]:
        """The clouds in the order of the list."""
        return file_blocks(self._root, self._entries[split], read_points, skip_bad)


def _read_list(path: Path, labels: dict[str, int]) -> list[Entry]:
    entries = []
    for i, line in enumerate(expect_unique(path, read_lines(path))):
        synset, dash, _ = expect_below(path, i, line).partition("-")
        if synset not in labels or not dash or "/" in line or not line.endswith(".npy"):
            wanted = "one of the 55 synsets, - and a name, as in 02691156-1a04e3eab45ca15dd86060f189eb133.npy"
            raise DataError(path, f"line {i + 1}", f"got {shown(line)}, wanted {wanted}: correct the list")
        entries.append(Entry(f"{_CLOUDS}/{line}", labels[synset]))
    return entries


def _root(path: Path, variant: str) -> Path | None:
    for root in (path, path / "ShapeNet55-34"):
        if is_folder(root / _CLOUDS) and _lists(root, variant):
            return root
    return None


def _lists(root: Path, variant: str) -> dict[str, Path]:
    """The list of each split that is there; none for a variant that is not."""
    folder = root / _FOLDERS.get(variant, "no such variant")
    paths = {split: folder / f"{split}.txt" for split in ("train", "test")}
    return {split: path for split, path in paths.items() if is_file(path)}
