"""A file that `convert` wrote, with a bit changed: refused, or read as it was written."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np

from jointmae.data.commands.convert import main
from jointmae.data.layouts import find
from jointmae.data.layouts.layout import Block
from jointmae.errors import DataError
from tests.shape_files import EXAMPLES


def contents(path: Path) -> str:
    """Everything in a file that a reader can see."""
    layout = find(path)
    seen: list[object] = [layout.classes, layout.part_names, layout.up_axis, layout.source, layout.licence]
    for split in layout.splits:
        for block in layout.blocks(split):
            assert isinstance(block, Block)
            seen += [split, block.points.tolist(), block.labels.tolist(), block.names]
    return json.dumps(seen)


def test_a_changed_byte_is_noticed_or_changes_nothing(tmp_path: Path, release: bool) -> None:
    """400 bytes of a small file, every bit of all of them with --release."""
    for split in ("train", "test"):
        (tmp_path / "meshes" / split / "a").mkdir(parents=True)
        (tmp_path / "meshes" / split / "a" / "0.off").write_bytes(EXAMPLES["pyramid.off"])
        np.save(tmp_path / "meshes" / split / "a" / "1.npy", np.random.default_rng(0).normal(size=(9, 3)))
    assert main([str(tmp_path / "meshes"), str(tmp_path / "set.h5"), "--num-points", "8", "--source", "s"]) == 0
    whole = (tmp_path / "set.h5").read_bytes()
    path, expected, noticed = tmp_path / "damaged.h5", contents(tmp_path / "set.h5"), 0
    places = range(len(whole)) if release else random.Random(0).sample(range(len(whole)), 400)
    for place in places:
        for bit in range(8) if release else [place % 8]:
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                assert contents(path) == expected, f"byte {place}, bit {bit}"
            except DataError as error:
                assert error.file == str(path)
                noticed += 1
    assert noticed > 50
