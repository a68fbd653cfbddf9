"""HDF5 files of every layout with bytes changed, added, taken away: a data set or a DataError, and soon."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests import official_sets
from tests.conftest import ROOT


def own(folder: Path, **options: object) -> tuple[Path, Path]:
    """Strings of variable length and attributes too, which HDF5 keeps in a heap."""
    path = folder / "set.h5"
    with h5py.File(path, "w") as file:
        for split in ("train", "test"):
            file.create_dataset(f"{split}/points", data=official_sets.random_clouds(3, 8), **options)
            file.create_dataset(f"{split}/part", data=np.ones((3, 8), np.uint8), **options)
            file[f"{split}/label"], file[f"{split}/name"] = [0, 1, -1], ["a", "b", "c"]
        file.attrs["classes"], file.attrs["up_axis"], file["part_names"] = ["chair", "table"], "+z", ["leg", "top"]
    return path, path


def plain(folder: Path) -> tuple[Path, Path]:
    return own(folder)


def compressed(folder: Path) -> tuple[Path, Path]:
    return own(folder, compression="gzip", shuffle=True, fletcher32=True)


def lzf(folder: Path) -> tuple[Path, Path]:
    return own(folder, compression="lzf")


def modelnet(folder: Path) -> tuple[Path, Path]:
    root = official_sets.modelnet_hdf5(folder)
    return root, root / "ply_data_train1.h5"


def scanobjectnn(folder: Path) -> tuple[Path, Path]:
    root = official_sets.scanobjectnn(folder)
    return Path(f"{root}:obj_bg"), root / "main_split" / "training_objectdataset.h5"


def shapenet_part(folder: Path) -> tuple[Path, Path]:
    root = official_sets.shapenet_part_hdf5(folder)
    return root, root / "ply_data_train0.h5"


@pytest.mark.parametrize("write", [plain, compressed, lzf, modelnet, scanobjectnn, shapenet_part])
def test_a_damaged_hdf5_file_is_read_or_refused(
    tmp_path: Path, write: Callable[[Path], tuple[Path, Path]], release: bool
) -> None:
    """500 variants of each file, 50,000 with --release: HDF5 takes milliseconds for each."""
    spec, file = write(tmp_path)
    count, place = 50_000 if release else 500, tmp_path / "place"
    begin = time.perf_counter()
    command = [sys.executable, "-m", "tests.faults.damaged_hdf5", str(spec), str(file), str(count), str(place)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if ran.returncode:
        i = int.from_bytes(place.read_bytes(), "little")
        pytest.fail(f"variant {i}, exit code {ran.returncode}\n{ran.stderr}")
    num_read, seconds = int(ran.stdout), time.perf_counter() - begin
    print(f"{write.__name__}: {count:,} variants, {num_read:,} read, {count - num_read:,} refused, {seconds:.1f} s")
    assert 0 < num_read < count
