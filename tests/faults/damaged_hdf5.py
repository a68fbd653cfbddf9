"""Run by test_damaged_hdf5 in a process of its own: HDF5 is C code, and what it does to damaged files shows there.

`python -m tests.faults.damaged_hdf5 SPEC FILE COUNT PLACE` reads the data set SPEC with COUNT variants of its FILE,
writes the number of each variant to PLACE before it is read, and prints how many were read as a data set.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import sys
from pathlib import Path

import numpy as np

from jointmae.data.layouts import find
from jointmae.data.layouts.layout import Block
from jointmae.errors import DataError
from tests.faults.test_damaged_files import damage

LIMIT_SECONDS = 10


def variant(original: bytes, i: int) -> bytes:
    """Half of the faults lie in the bytes that describe the data: the others are mostly numbers, which may be any."""
    generator = random.Random(i)
    data = bytearray(original)
    for _ in range(generator.choice((1, 1, 2, 4, 8))):
        if i % 2:
            damage(data, generator)
        elif data:
            data[generator.randrange(len(data))] = generator.choice((0, 1, 0xFF, generator.randrange(256)))
    return bytes(data)


def read_all(spec: str) -> None:
    """Every cloud of every split, each block as its layout promises it."""
    layout = find(spec)
    assert set(layout.splits) <= {"train", "val", "test", "extra"}
    for split in layout.splits:
        for block in layout.blocks(split):
            assert isinstance(block, Block) and block.points.dtype == np.float32
            assert block.points.shape == (block.sizes.sum(), 3) and block.sizes.min() >= 1
            assert len(block.labels) == len(block.names) == len(block.sizes)
            assert block.labels.min() >= -1 and block.labels.max() < max(1, len(layout.classes))
            assert block.parts is None or block.parts.shape == (len(block.points),)


def main(spec: str, file: Path, count: int, place: Path) -> None:
    original, num_read = file.read_bytes(), 0
    read_all(spec)
    faulthandler.register(signal.SIGPROF, chain=True)  # says where, and then ends the process
    with place.open("wb", buffering=0) as places:
        for i in range(count):
            os.pwrite(places.fileno(), i.to_bytes(8, "little"), 0)
            file.write_bytes(variant(original, i))
            signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS)  # of processor time: the machine may be busy
            faulthandler.dump_traceback_later(6 * LIMIT_SECONDS, exit=True)
            try:
                read_all(spec)
                num_read += 1
            except DataError as error:
                assert error.file == str(file) and error.what, error
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()
    print(num_read)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
