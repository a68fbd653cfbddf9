"""Own data: a folder of clouds and meshes, one sub-folder a class or none; a zip archive of one; or a single file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jointmae.data import archive
from jointmae.data.layouts.layout import BadFile, Block, Layout, Names, to_float32
from jointmae.data.reading import Cloud, Request, read_clouds
from jointmae.data.resample import seed_of
from jointmae.data.shapes.read import SUFFIXES
from jointmae.data.tree import Entry, find_shapes
from jointmae.errors import DataError

BLOCK = 128  # files
MESH_POINTS = 2048
"""Sampled from a mesh, by area, the same ones each time."""


class Folders(Layout):
    """Files of one cloud or mesh each; folders name their classes and splits."""

    kind = "folder of shapes"
    tree = f"""\
FOLDER, or FOLDER.zip
  CLASS/FILE          one sub-folder a class; no splits: all of it is train
  SPLIT/CLASS/FILE    or split into train, val, test, extra
  CLASS/SPLIT/FILE    or as ModelNet's meshes are: ModelNet40/chair/train/chair_0001.off
  FILE                or without classes; a single FILE is a set of one
clouds and meshes: {" ".join(SUFFIXES)}"""
    rows_are_random = False  # a scanner writes line by line

    def __init__(self, path: Path, variant: str = "") -> None:
        self.path, self.variant = path, variant
        found = find_shapes(path)
        self._entries = found.entries
        self.classes, self.part_names = found.classes, ()
        self.up_axis, self.source, self.licence = "+y", "", ""
        self.splits = found.splits() or ("train",)

    @classmethod
    def variants(cls, path: Path) -> Names:
        """Any folder or archive, and files of shapes."""
        return ("",) if path.is_dir() or path.suffix.lower() in (*SUFFIXES, *archive.SUFFIXES) else ()

    def files(self) -> list[Path]:
        """The files of shapes, or the archive."""
        return list(dict.fromkeys(entry.path for entry in self._entries))

    def num_clouds(self, split: str) -> int:
        """Files of the split."""
        return len(self._entries_of(split))

    def blocks(self, split: str, skip_bad: bool = False) -> Iterator[Block | BadFile]:
        """The files in natural order of their names."""
        entries = self._entries_of(split)
        requests = (Request(e.path, e.member, e.name, MESH_POINTS, seed_of(0, e.name)) for e in entries)
        results = zip(entries, read_clouds(requests), strict=True)
        while batch := list(itertools.islice(results, BLOCK)):
            good = []
            for entry, result in batch:
                if isinstance(result, Cloud):
                    good.append((entry, result))
                elif skip_bad:
                    yield BadFile(entry.name, result.what)
                else:
                    raise DataError(self._file(entry), result.item, result.what)
            if good:
                yield self._block(good)

    def _block(self, clouds: Sequence[tuple[Entry, Cloud]]) -> Block:
        number = {name: i for i, name in enumerate(self.classes)}
        return Block(
            points=np.concatenate([to_float32(cloud.points) for _, cloud in clouds]),
            sizes=np.array([len(cloud.points) for _, cloud in clouds], dtype=np.int64),
            labels=np.array([number.get(entry.label, -1) for entry, _ in clouds], dtype=np.int64),
            names=tuple(entry.name for entry, _ in clouds),
            parts=None,
            file=self.path if self.path.is_dir() or self._entries[0].member else self.path.parent,
        )

    def _entries_of(self, split: str) -> list[Entry]:
        return [entry for entry in self._entries if (entry.split or "train") == split]

    def _file(self, entry: Entry) -> Path:
        """How an error names a file, also in an archive."""
        return entry.path / entry.member if entry.member else entry.path
