"""Reading: batches of a mapped set beside a DataLoader that reads sample by sample, and opening a set that is kept.

The rival is how the family's code works: one `.npy` file a cloud, a random subset drawn in NumPy, two worker processes.
"""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.timing import rotated
from jointmae.data import PointClouds, cache, load

B = 128


class PerSample(Dataset[Tensor]):
    def __init__(self, folder: Path, num_clouds: int, num_points: int) -> None:
        self.folder, self.num_clouds, self.num_points = folder, num_clouds, num_points

    def __len__(self) -> int:
        return self.num_clouds

    def __getitem__(self, i: int) -> Tensor:
        points = np.load(self.folder / f"{i}.npy")
        rows = np.random.permutation(len(points))[: self.num_points]
        return torch.from_numpy(points[rows])


@pytest.fixture(scope="module")
def num_clouds(request) -> int:
    return 1024 if request.config.getoption("--quick") else 57_448


@pytest.fixture(scope="module")
def path(tmp_path_factory, num_clouds) -> Path:
    """A set of 2,048 points a cloud, as ShapeNet is large, and a cache of its own."""
    folder = tmp_path_factory.mktemp("data")
    os.environ["JOINTMAE_CACHE"] = str(folder / "cache")
    with h5py.File(folder / "set.h5", "w") as file:
        points = file.create_dataset("train/points", (num_clouds, 2048, 3), "f4")
        block = np.random.default_rng(0).normal(size=(1024, 2048, 3)).astype(np.float32)
        for start in range(0, num_clouds, 1024):
            points[start : start + 1024] = block[: num_clouds - start]
    return folder / "set.h5"


@pytest.fixture(scope="module")
def clouds(path) -> PointClouds:
    before, cache.MANY_BYTES = cache.MANY_BYTES, 0
    load(path)
    mapped = load(path)
    cache.MANY_BYTES = before
    return mapped


@pytest.mark.parametrize("num_points", [1024, 2048])
def bench_batches(compare, device, clouds, num_clouds, num_points, tmp_path):
    if device.type != "cpu":
        pytest.skip("reading is the CPU's work")
    num_files = 1024
    for i in range(num_files):
        np.save(tmp_path / f"{i}.npy", clouds.points[i].numpy())
    loader = DataLoader(PerSample(tmp_path, num_files, num_points), B, shuffle=True, num_workers=2)

    def ours(ids: Tensor) -> Tensor:
        return torch.cat([clouds.batch(some, num_points, 0, 0) for some in ids.split(B)])

    def per_sample(_: Tensor) -> Tensor:
        return torch.cat(list(loader))

    compare(
        f"data: {num_files} of {num_clouds:,} clouds, {num_points} of 2,048 points",
        {"jointmae, mapped": ours, "DataLoader, a file a cloud": per_sample},
        rotated(lambda: (torch.randperm(num_clouds)[:num_files],), device),
        check=lambda result, expected: None if result.shape == expected.shape else pytest.fail("other shape"),
    )


def bench_open(compare, device, path, num_clouds, monkeypatch):
    if device.type != "cpu":
        pytest.skip("reading is the CPU's work")
    monkeypatch.setattr(cache, "MANY_BYTES", 0)
    load(path)

    def kept(ids: Tensor) -> Tensor:
        return load(path).batch(ids, 1024, 0, 0)

    def decoded(ids: Tensor) -> Tensor:
        with monkeypatch.context() as off:
            off.setenv("JOINTMAE_CACHE", "off")
            return load(path).batch(ids, 1024, 0, 0)

    compare(
        f"data: opening {num_clouds:,} clouds of 2,048 points, first batch of {B}",
        {"jointmae, kept": kept, "jointmae, decoded": decoded},
        rotated(lambda: (torch.randperm(num_clouds)[:B],), device),
    )
